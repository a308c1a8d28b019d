"""Reference implementations that tests of this API compare with."""
