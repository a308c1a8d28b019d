"""The software bill of materials: what is compiled into the wheel, and by what.

CycloneDX 1.6 as JSON, in ``<dist-info>/sboms`` (PEP 770). Time and serial number follow from the content, so
that the same wheel gets the same bytes.
"""

from __future__ import annotations

import datetime
import hashlib
import uuid
from collections.abc import Mapping
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

__all__ = ["SBOM", "make_sbom"]

SBOM = "sboms/sgl_kernel.cdx.json"
_NVIDIA = "NVIDIA CUDA Toolkit End User License Agreement"
_CXX = {"GNU": "gcc", "Clang": "clang"}
_GCC = "GPL-3.0-or-later WITH GCC-exception-3.1"


def make_sbom(
    name: str, version: str, record: Mapping[str, Any], files: Mapping[str, bytes], *, epoch: int
) -> bytes:
    """Return the bill of materials of a wheel.

    ``record`` is its build record, ``files`` its shared objects by name, ``epoch`` the time to state, in
    seconds since 1970 (UTC).
    """
    licenses = LicenseFactory()

    def component(
        what: str, number: str, role: str, license_text: str | None, package: str | None
    ) -> Component:
        is_tool = role == "build tool"
        return Component(
            name=what,
            version=number,
            type=ComponentType.APPLICATION if is_tool else ComponentType.LIBRARY,
            scope=ComponentScope.EXCLUDED if is_tool else ComponentScope.REQUIRED,
            bom_ref=f"{what}@{number}",
            licenses=[licenses.make_from_string(license_text)] if license_text else (),
            purl=PackageURL("pypi", None, package, number) if package else None,
            properties=[Property(name="sgl-kernel:role", value=role)],
        )

    compiler, compiler_version = record["device_compiler"]["name"], record["device_compiler"]["version"]
    cxx, _, cxx_version = str(record["cxx_compiler"]).partition(" ")
    components = [
        component(
            compiler,
            compiler_version,
            "build tool",
            _NVIDIA,
            "nvidia-cuda-nvrtc-cu12" if compiler == "nvrtc" else None,
        ),
        component(_CXX.get(cxx, cxx), cxx_version, "build tool", None, None),
    ]
    for header, number in record["device_compiler"]["headers"].items():
        package = header if header.startswith("nvidia-") else None
        components.append(component(header, number, "headers compiled into device code", None, package))
    if cxx == "GNU":
        components.append(component("libstdc++", cxx_version, "linked statically", _GCC, None))
    digests = {file: hashlib.sha256(data).hexdigest() for file, data in sorted(files.items())}
    components += [
        Component(
            name=file,
            type=ComponentType.FILE,
            bom_ref=file,
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
        )
        for file, digest in digests.items()
    ]
    purl = PackageURL("pypi", None, name, version)
    subject = Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=str(purl),
        licenses=[licenses.make_from_string("Apache-2.0")],
        purl=purl,
    )
    bom = Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"{purl} {sorted(digests.values())}"),
        metadata=BomMetaData(
            component=subject, timestamp=datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc)
        ),
        components=components,
    )
    bom.register_dependency(subject, [item for item in components if item.scope != ComponentScope.EXCLUDED])
    return (JsonV1Dot6(bom).output_as_string(indent=2) + "\n").encode()
