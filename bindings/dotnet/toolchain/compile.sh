# How the scripts compile and run C#; sourced by them, with $tools the folder that setup.sh made.
# shellcheck shell=sh

dotnet=$tools/net/dotnet
framework=$(echo "$tools"/net/shared/Microsoft.NETCore.App/*)
mono=/usr/lib/mono/4.7.2-api
compile() {
    "$dotnet" "$tools/roslyn/Compile.dll" -langversion:12 -nullable -werror "$@"
}
modern() {
    compile "-define:NET8_0_OR_GREATER;NET8_0" "-ref:$framework" "$@"
}
# .NET Framework's assemblies under netstandard2.0's conditions: what Mono, Unity and .NET Framework run.
classic() {
    compile -define:NETSTANDARD2_0 "-ref:$mono/mscorlib.dll" "-ref:$mono/System.dll" "-ref:$mono/System.Core.dll" \
        "-ref:$mono/Facades" "-ref:$tools/netfx" "$@"
}
runs_on() {
    cp "$tools/roslyn/runtimeconfig.json" "${1%.dll}.runtimeconfig.json"
}
has_mono() {
    command -v mono > /dev/null && [ -d "$mono" ]
}
