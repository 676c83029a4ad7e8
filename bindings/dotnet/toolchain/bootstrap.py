"""Compiles Compile.cs, the compiler's command, by driving Roslyn from Python: bootstrap.py NET ROSLYN SOURCE OUT"""

import os
import sys

from clr_loader import get_coreclr
from pythonnet import set_runtime

net, roslyn, source, out = map(os.path.abspath, sys.argv[1:5])
framework = os.path.join(net, "shared", "Microsoft.NETCore.App")
framework = os.path.join(framework, os.listdir(framework)[0])
set_runtime(get_coreclr(runtime_config=os.path.join(roslyn, "runtimeconfig.json"), dotnet_root=net))
import clr  # noqa: E402

sys.path.append(roslyn)
clr.AddReference("Microsoft.CodeAnalysis")
clr.AddReference("Microsoft.CodeAnalysis.CSharp")
from Microsoft.CodeAnalysis import MetadataReference, OutputKind, SyntaxTree  # noqa: E402
from Microsoft.CodeAnalysis.CSharp import CSharpCompilation, CSharpCompilationOptions, CSharpSyntaxTree  # noqa: E402
from System.Collections.Generic import List  # noqa: E402
from System.IO import FileMode, FileStream  # noqa: E402

references = List[MetadataReference]()
for folder in (framework, roslyn):
    for name in sorted(os.listdir(folder)):
        if name.endswith(".dll") and name != os.path.basename(out):
            references.Add(MetadataReference.CreateFromFile(os.path.join(folder, name)))
trees = List[SyntaxTree]()
with open(source) as file:
    trees.Add(CSharpSyntaxTree.ParseText(file.read()))
stream = FileStream(out, FileMode.Create)
options = CSharpCompilationOptions(OutputKind.ConsoleApplication)
result = CSharpCompilation.Create("Compile", trees, references, options).Emit(stream)
stream.Close()
for diagnostic in result.Diagnostics:
    if int(diagnostic.Severity) == 3:
        print(diagnostic)
sys.exit(0 if result.Success else 1)
