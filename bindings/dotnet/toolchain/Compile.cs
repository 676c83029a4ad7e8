// Roslyn as a command, for machines without an SDK:
//
//   dotnet Compile.dll [-lib] [-nullable] [-werror] [-doc] [-langversion:N] [-define:A;B]
//       [-ref:FILE|FOLDER]... -out:FILE SOURCE...
//
// -doc checks the documentation comments, and writes them beside the output.
using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Text;
using Microsoft.CodeAnalysis;
using Microsoft.CodeAnalysis.CSharp;

public static class Compile
{
    public static int Main(string[] arguments)
    {
        string output = null, version = "latest";
        bool library = false, nullable = false, strict = false, documented = false;
        var references = new List<MetadataReference>();
        var symbols = new List<string>();
        var sources = new List<string>();
        foreach (string argument in arguments)
        {
            int colon = argument.IndexOf(':');
            string value = argument.Substring(colon + 1);
            if (!argument.StartsWith("-")) sources.Add(argument);
            else if (argument == "-lib") library = true;
            else if (argument == "-nullable") nullable = true;
            else if (argument == "-werror") strict = true;
            else if (argument == "-doc") documented = true;
            else if (argument.StartsWith("-out:")) output = value;
            else if (argument.StartsWith("-langversion:")) version = value;
            else if (argument.StartsWith("-define:")) symbols.AddRange(value.Split(';'));
            else if (argument.StartsWith("-ref:")) references.AddRange(Assemblies(value));
            else
            {
                Console.Error.WriteLine("unknown option: " + argument);
                return 2;
            }
        }
        LanguageVersion language;
        if (output == null || !LanguageVersionFacts.TryParse(version, out language))
        {
            Console.Error.WriteLine("no output, or an unknown language version");
            return 2;
        }
        var parsing = CSharpParseOptions.Default.WithLanguageVersion(language).WithPreprocessorSymbols(symbols)
            .WithDocumentationMode(documented ? DocumentationMode.Diagnose : DocumentationMode.Parse);
        var trees = sources.Select(file => CSharpSyntaxTree.ParseText(File.ReadAllText(file), parsing, file, Encoding.UTF8));
        var options = new CSharpCompilationOptions(library ? OutputKind.DynamicallyLinkedLibrary : OutputKind.ConsoleApplication)
            .WithAllowUnsafe(true).WithOptimizationLevel(OptimizationLevel.Release).WithDeterministic(true)
            // Two versions of one assembly, which an SDK does not warn of either.
            .WithSpecificDiagnosticOptions(new Dictionary<string, ReportDiagnostic>
            {
                ["CS1701"] = ReportDiagnostic.Suppress,
                ["CS1702"] = ReportDiagnostic.Suppress,
            })
            .WithNullableContextOptions(nullable ? NullableContextOptions.Enable : NullableContextOptions.Disable);
        var compilation = CSharpCompilation.Create(Path.GetFileNameWithoutExtension(output), trees, references, options);
        int warnings = 0;
        bool success;
        using (Stream assembly = File.Create(output))
        using (Stream documentation = documented ? File.Create(Path.ChangeExtension(output, ".xml")) : null)
        {
            var result = compilation.Emit(assembly, null, documentation);
            success = result.Success;
            foreach (var diagnostic in result.Diagnostics.Where(d => d.Severity >= DiagnosticSeverity.Warning && !d.IsSuppressed))
            {
                Console.WriteLine(diagnostic.ToString());
                warnings++;
            }
        }
        success = success && !(strict && warnings > 0);
        if (!success)
        {
            File.Delete(output);
        }
        return success ? 0 : 1;
    }

    // Of a folder's files, those that are assemblies.
    private static IEnumerable<MetadataReference> Assemblies(string path)
    {
        foreach (string file in Directory.Exists(path) ? Directory.GetFiles(path, "*.dll") : new[] { path })
        {
            try
            {
                System.Reflection.AssemblyName.GetAssemblyName(file);
            }
            catch (BadImageFormatException)
            {
                continue;
            }
            yield return MetadataReference.CreateFromFile(file);
        }
    }
}
