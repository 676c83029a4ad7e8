using System.Runtime.CompilerServices;

[assembly: InternalsVisibleTo("Siren.Tests")]
