using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Text.Json;
using Siren;
using Xunit;

namespace Siren.Tests
{
    /// <summary>include/siren-abi.json, which is made of the library; and the search for the library.</summary>
    public sealed class AbiTests
    {
        private readonly JsonElement abi = Source.Json("include", "siren-abi.json");

        [Fact]
        public void TheVersionIsTheLibrarys()
        {
            Assert.Equal(Native.AbiMajor, abi.GetProperty("abi").GetProperty("major").GetUInt32());
            Assert.Equal(Native.AbiMinor, abi.GetProperty("abi").GetProperty("minor").GetUInt32());
            Assert.Equal((int)(Native.AbiMajor << 16 | Native.AbiMinor), SirenLibrary.AbiVersion);
            Assert.Equal(3, SirenLibrary.Version.Split('.').Length);
            Assert.NotEqual("", SirenLibrary.Path);
        }

        [Fact]
        public void EveryStatusIsHereByNameAndNumber()
        {
            var known = Enum.GetValues(typeof(SirenStatus)).Cast<SirenStatus>().ToDictionary(SirenLibrary.Name, status => (int)status);
            var listed = abi.GetProperty("statuses").EnumerateObject().ToDictionary(status => status.Name, status => status.Value.GetInt32());
            Assert.Equal(listed.OrderBy(one => one.Value), known.OrderBy(one => one.Value));
            foreach (SirenStatus status in Enum.GetValues(typeof(SirenStatus)))
            {
                Assert.Equal(SirenLibrary.Name(status), Underscored(status.ToString()).ToLowerInvariant());
            }
        }

        [Fact]
        public void LayoutsAreTheLibrarys()
        {
            var structs = new Dictionary<string, Type>
            {
                ["siren_text"] = typeof(NativeText),
                ["siren_error"] = typeof(NativeError),
                ["siren_open_options"] = typeof(NativeOpenOptions),
                ["siren_input"] = typeof(NativeInput),
                ["siren_score_options"] = typeof(NativeScoreOptions),
                ["siren_result"] = typeof(NativeResult),
                ["siren_stream_options"] = typeof(NativeStreamOptions),
                ["siren_push_options"] = typeof(NativePushOptions),
                ["siren_push_result"] = typeof(NativePushResult),
                ["siren_guard_info"] = typeof(NativeGuardInfo),
                ["siren_guard_stats"] = typeof(NativeGuardStats),
            };
            JsonElement listed = abi.GetProperty("structs");
            Assert.Equal(listed.EnumerateObject().Count(), structs.Count);
            foreach (JsonProperty one in listed.EnumerateObject())
            {
                Type type = structs[one.Name];
                Assert.True(one.Value.GetProperty("size").GetInt32() == Marshal.SizeOf(type), $"{one.Name} has {Marshal.SizeOf(type)} bytes");
                FieldInfo[] fields = type.GetFields(BindingFlags.Instance | BindingFlags.Public | BindingFlags.NonPublic);
                JsonElement offsets = one.Value.GetProperty("offsets");
                Assert.Equal(offsets.EnumerateObject().Count(), fields.Length);
                foreach (FieldInfo field in fields)
                {
                    string name = Underscored(field.Name).ToLowerInvariant();
                    long offset = (long)Marshal.OffsetOf(type, field.Name);
                    Assert.True(offsets.TryGetProperty(name, out JsonElement expected), $"{one.Name} has no {name}");
                    Assert.True(expected.GetInt64() == offset, $"{one.Name}.{name} is at {offset}, expected {expected}");
                }
            }
        }

        private static string Underscored(string name) =>
            string.Concat(name.Select((c, i) => i > 0 && char.IsUpper(c) ? "_" + c : c.ToString()));

        [Fact]
        public void AMissingLibrarySaysWhereItWasLookedFor()
        {
            string folder = Path.Combine(Path.GetTempPath(), "siren-" + Guid.NewGuid().ToString("N"));
            string broken = Path.Combine(folder, "broken");
            Directory.CreateDirectory(broken);
            try
            {
                // The process has loaded the right one under its own name.
                const string name = "libsiren-that-is-nowhere.so";
                string file = Path.Combine(broken, name);
                File.WriteAllText(file, "no library");
                string message = Assert.Throws<DllNotFoundException>(() =>
                    NativeLoader.Load(null, new[] { folder, broken }, new[] { name })).Message;
                Assert.Contains(NativeLoader.Rid, message);
                Assert.Contains("SIREN_LIBRARY", message);
                Assert.Contains(Path.Combine(folder, name) + ": not there", message);
                Assert.Contains(file + ": ", message);
                Assert.DoesNotContain(file + ": not there", message);
                Assert.Contains(name + ", where the system looks: ", message);
                message = Assert.Throws<DllNotFoundException>(() => NativeLoader.Load(file, Array.Empty<string>(), Array.Empty<string>())).Message;
                Assert.Contains(file, message);
                Assert.Contains("SIREN_LIBRARY names", message);
            }
            finally
            {
                Directory.Delete(folder, recursive: true);
            }
        }
    }
}
