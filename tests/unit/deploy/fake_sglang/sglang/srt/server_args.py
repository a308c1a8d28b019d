"""SGLang's options as far as a deployment depends on them: a dataclass whose repr shows the key."""

import argparse
import dataclasses


@dataclasses.dataclass
class ServerArgs:
    model_path: str
    served_model_name: str
    host: str
    port: int
    api_key: str | None = None
    fail: str | None = None
    subprocess: bool = False


def prepare_server_args(argv):
    parser = argparse.ArgumentParser()
    for name in ("model-path", "served-model-name", "host", "api-key", "fail"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--port", type=int)
    parser.add_argument("--subprocess", action="store_true")
    known, _ = parser.parse_known_args(argv)
    return ServerArgs(**vars(known))
