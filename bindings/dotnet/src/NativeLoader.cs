using System;
using System.Collections.Generic;
using System.IO;
using System.Runtime.InteropServices;
using System.Text;

namespace Siren
{
    /// <summary>Finds libsiren, and says where it looked.</summary>
    internal static class NativeLoader
    {
        /// <summary>Names the file of the library, over every other place.</summary>
        public const string Variable = "SIREN_LIBRARY";

        /// <summary>A library that is loaded, to the end of the process.</summary>
        internal sealed class Loaded
        {
            private readonly IntPtr handle;

            public readonly string Path;

            public Loaded(string path, IntPtr handle)
            {
                Path = path;
                this.handle = handle;
            }

            public IntPtr Find(string symbol)
            {
                IntPtr address = Symbol(handle, symbol);
                return address != IntPtr.Zero ? address : throw new DllNotFoundException($"{Path} is no libsiren of this version: it lacks {symbol}");
            }
        }

        public static Loaded Load() =>
            Load(Environment.GetEnvironmentVariable(Variable), Folders(), Names());

        internal static Loaded Load(string? named, IEnumerable<string> folders, string[] names)
        {
            if (IntPtr.Size != 8)
            {
                throw new PlatformNotSupportedException("libsiren is for 64-bit processes");
            }
            string reason;
            if (!string.IsNullOrEmpty(named))
            {
                IntPtr handle = Open(named!, out reason);
                return handle != IntPtr.Zero ? new Loaded(named!, handle)
                    : throw new DllNotFoundException($"libsiren cannot be loaded from {named}, which {Variable} names: {reason}");
            }
            var tried = new StringBuilder();
            foreach (string folder in folders)
            {
                foreach (string name in names)
                {
                    string path = Path.Combine(folder, name);
                    if (!File.Exists(path))
                    {
                        tried.Append("\n  ").Append(path).Append(": not there");
                        continue;
                    }
                    IntPtr handle = Open(path, out reason);
                    if (handle != IntPtr.Zero)
                    {
                        return new Loaded(path, handle);
                    }
                    tried.Append("\n  ").Append(path).Append(": ").Append(reason);
                }
            }
            foreach (string name in names)
            {
                IntPtr handle = Open(name, out reason);
                if (handle != IntPtr.Zero)
                {
                    return new Loaded(name, handle);
                }
                tried.Append("\n  ").Append(name).Append(", where the system looks: ").Append(reason);
            }
            throw new DllNotFoundException($"libsiren for {Rid} is not found; {Variable} may name its file. Looked for:{tried}");
        }

        /// <summary>The runtime identifier whose folder of a package holds the library.</summary>
        public static string Rid
        {
            get
            {
                string system = RuntimeInformation.IsOSPlatform(OSPlatform.Windows) ? "win"
                    : RuntimeInformation.IsOSPlatform(OSPlatform.OSX) ? "osx" : "linux";
                return system + "-" + RuntimeInformation.ProcessArchitecture.ToString().ToLowerInvariant();
            }
        }

        private static string[] Names()
        {
            if (RuntimeInformation.IsOSPlatform(OSPlatform.Windows))
            {
                return new[] { "siren.dll" };
            }
            return RuntimeInformation.IsOSPlatform(OSPlatform.OSX)
                ? new[] { "libsiren.dylib", "libsiren.0.dylib" }
                : new[] { "libsiren.so", "libsiren.so.0" };
        }

        /// <summary>
        /// Where packages put it: the folders that the host knows of packages, and the program's and this
        /// assembly's own with runtimes/RID/native in them.
        /// </summary>
        private static IEnumerable<string> Folders()
        {
            var seen = new HashSet<string>(StringComparer.Ordinal);
            if (AppContext.GetData("NATIVE_DLL_SEARCH_DIRECTORIES") is string known)
            {
                foreach (string folder in known.Split(new[] { Path.PathSeparator }, StringSplitOptions.RemoveEmptyEntries))
                {
                    if (seen.Add(folder.TrimEnd(Path.DirectorySeparatorChar)))
                    {
                        yield return folder;
                    }
                }
            }
            foreach (string? beside in Beside())
            {
                if (string.IsNullOrEmpty(beside))
                {
                    continue;
                }
                string inPackage = Path.Combine(beside, "runtimes", Rid, "native");
                if (seen.Add(inPackage))
                {
                    yield return inPackage;
                }
                if (seen.Add(beside!.TrimEnd(Path.DirectorySeparatorChar)))
                {
                    yield return beside;
                }
            }
        }

        /// <summary>
        /// Where a package's program has the demo guard; null where it has none or another place is named. The
        /// library itself looks beside an installation only.
        /// </summary>
        public static string? PackagedData()
        {
            string folder = Path.Combine(AppContext.BaseDirectory, "share", "libsiren");
            return string.IsNullOrEmpty(Environment.GetEnvironmentVariable("SIREN_DATA_DIR"))
                && Directory.Exists(Path.Combine(folder, "models", "demo")) ? folder : null;
        }

        private static IEnumerable<string?> Beside()
        {
            yield return AppContext.BaseDirectory;
#if !NET8_0_OR_GREATER
            // In a program of one file, which modern .NET makes, an assembly has no place of its own.
            yield return Path.GetDirectoryName(typeof(NativeLoader).Assembly.Location);
#endif
        }

#if NET8_0_OR_GREATER
        private static IntPtr Open(string path, out string reason)
        {
            try
            {
                reason = "";
                return NativeLibrary.Load(path);
            }
            catch (Exception e) when (e is DllNotFoundException || e is BadImageFormatException)
            {
                reason = e.Message;
                return IntPtr.Zero;
            }
        }

        private static IntPtr Symbol(IntPtr library, string name) =>
            NativeLibrary.TryGetExport(library, name, out IntPtr address) ? address : IntPtr.Zero;
#else
        private static IntPtr Open(string path, out string reason)
        {
            reason = "";
            if (RuntimeInformation.IsOSPlatform(OSPlatform.Windows))
            {
                IntPtr module = LoadLibraryW(path);
                if (module == IntPtr.Zero)
                {
                    reason = new System.ComponentModel.Win32Exception(Marshal.GetLastWin32Error()).Message;
                }
                return module;
            }
            const int now = 2;
            bool mac = RuntimeInformation.IsOSPlatform(OSPlatform.OSX);
            IntPtr library = mac ? MacOpen(path, now) : LinuxOpen(path, now);
            if (library == IntPtr.Zero)
            {
                reason = Marshal.PtrToStringAnsi(mac ? MacError() : LinuxError()) ?? "unknown";
            }
            return library;
        }

        private static IntPtr Symbol(IntPtr library, string name)
        {
            if (RuntimeInformation.IsOSPlatform(OSPlatform.Windows))
            {
                return GetProcAddress(library, name);
            }
            return RuntimeInformation.IsOSPlatform(OSPlatform.OSX) ? MacSymbol(library, name) : LinuxSymbol(library, name);
        }

        [DllImport("kernel32", CharSet = CharSet.Unicode, ExactSpelling = true, SetLastError = true)]
        private static extern IntPtr LoadLibraryW(string path);

        [DllImport("kernel32", CharSet = CharSet.Ansi, ExactSpelling = true, BestFitMapping = false)]
        private static extern IntPtr GetProcAddress(IntPtr module, string name);

        [DllImport("libdl.so.2", EntryPoint = "dlopen")]
        private static extern IntPtr LinuxOpen(string path, int flags);

        [DllImport("libdl.so.2", EntryPoint = "dlsym")]
        private static extern IntPtr LinuxSymbol(IntPtr library, string name);

        [DllImport("libdl.so.2", EntryPoint = "dlerror")]
        private static extern IntPtr LinuxError();

        [DllImport("libSystem.dylib", EntryPoint = "dlopen")]
        private static extern IntPtr MacOpen(string path, int flags);

        [DllImport("libSystem.dylib", EntryPoint = "dlsym")]
        private static extern IntPtr MacSymbol(IntPtr library, string name);

        [DllImport("libSystem.dylib", EntryPoint = "dlerror")]
        private static extern IntPtr MacError();
#endif
    }
}
