"""Makes a folder feed with the package Libsiren, without an SDK.

    pack.py FEED PREFIX lib/net8.0=FOLDER [lib/net472=FOLDER]...

PREFIX is an installation of libsiren; each FOLDER has Siren.dll and Siren.xml, built for that framework.
FEED gets the package in the layout that NuGet's own hierarchical feeds have, FEED/libsiren/VERSION/, so that
`dotnet nuget add source FEED` takes it. With an SDK, `dotnet pack src -p:SirenPrefix=PREFIX` makes the
package for netstandard2.0 and net8.0 instead.
"""

import base64
import hashlib
import re
import sys
import zipfile
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent
PROJECT = (HERE.parent / "src" / "Siren.csproj").read_text()
RID = "linux-x64"
# What the builds that are not for modern .NET need of others.
NEEDS = {"System.Memory": "4.6.3", "Microsoft.Bcl.AsyncInterfaces": "8.0.0"}


def said(name):
    return re.search(f"<{name}>(.*?)</{name}>", PROJECT).group(1)


def nuspec(frameworks):
    groups = ""
    for framework in frameworks:
        needs = {} if framework.startswith("net8") else NEEDS
        inside = "".join(f'<dependency id="{name}" version="{version}" />' for name, version in needs.items())
        groups += f'      <group targetFramework="{framework}">{inside}</group>\n'
    return f"""<?xml version="1.0" encoding="utf-8"?>
<package xmlns="http://schemas.microsoft.com/packaging/2013/05/nuspec.xsd">
  <metadata>
    <id>{said("PackageId")}</id>
    <version>{said("Version")}</version>
    <authors>libsiren</authors>
    <license type="expression">{said("PackageLicenseExpression")}</license>
    <readme>README.md</readme>
    <description>{escape(said("Description"))}</description>
    <dependencies>
{groups}    </dependencies>
  </metadata>
</package>
"""


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    feed, prefix = Path(sys.argv[1]), Path(sys.argv[2])
    files = {"README.md": HERE.parent / "README.md", "buildTransitive/Libsiren.targets": HERE / "Libsiren.targets"}
    frameworks = []
    for given in sys.argv[3:]:
        to, folder = given.split("=", 1)
        frameworks.append(to.removeprefix("lib/"))
        for name in ("Siren.dll", "Siren.xml"):
            files[f"{to}/{name}"] = Path(folder) / name
    files[f"runtimes/{RID}/native/libsiren.so"] = prefix / "lib" / "libsiren.so"
    share = prefix / "share" / "libsiren"
    files |= {f"share/libsiren/{path.relative_to(share)}": path for path in share.rglob("*") if path.is_file()}
    name, version = said("PackageId").lower(), said("Version")
    folder = feed / name / version
    folder.mkdir(parents=True, exist_ok=True)
    package = folder / f"{name}.{version}.nupkg"
    specification = nuspec(frameworks)
    kinds = sorted({path.suffix[1:] for path in map(Path, files) if path.suffix} | {"nuspec"})
    types = "".join(f'<Default Extension="{kind}" ContentType="application/octet" />' for kind in kinds)
    # Parts that have no extension, or none but a dot's, are named one by one.
    types += "".join(f'<Override PartName="/{to}" ContentType="application/octet" />' for to in files if not Path(to).suffix)
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr(
            "_rels/.rels",
            '<?xml version="1.0" encoding="utf-8"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/'
            'relationships"><Relationship Type="http://schemas.microsoft.com/packaging/2010/07/manifest" '
            f'Target="/{said("PackageId")}.nuspec" Id="R1" /></Relationships>',
        )
        out.writestr(
            "[Content_Types].xml",
            '<?xml version="1.0" encoding="utf-8"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
            '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml" />'
            f"{types}</Types>",
        )
        out.writestr(f"{said('PackageId')}.nuspec", specification)
        for to, source in sorted(files.items()):
            out.write(source, to)
    (folder / f"{name}.nuspec").write_text(specification)
    digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    (folder / f"{name}.{version}.nupkg.sha512").write_text(digest)
    print(package)


if __name__ == "__main__":
    main()
