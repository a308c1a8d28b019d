"""Does an audit say what importing says? Published wheels, loaded under the torch that is installed here."""
