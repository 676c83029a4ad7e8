using System;
using System.Diagnostics;
using System.Globalization;
using Siren;
using Xunit;

namespace Siren.Tests
{
    public sealed class MemoryTests
    {
        /// <summary>SIREN_CALLS sets how many calls; 1,000,000 take some seconds.</summary>
        [Theory]
        [InlineData(false)]
        [InlineData(true)]
        public void MemoryDoesNotGrowWithCalls(bool asynchronous)
        {
            string? given = Environment.GetEnvironmentVariable("SIREN_CALLS");
            int calls = given == null ? 100_000 : int.Parse(given, CultureInfo.InvariantCulture);
            using SirenGuard guard = Source.Open(options => options.MaxTextBytes = 8);
            void Run(int count)
            {
                for (int i = 0; i < count; i++)
                {
                    // What throws is dearer, and runs less often.
                    using SirenStream stream = guard.NewStream();
                    if (i % 100 == 0)
                    {
                        Assert.ThrowsAny<SirenException>(() => asynchronous
                            ? guard.ScoreAsync("more than 8 bytes").GetAwaiter().GetResult() : guard.Score("more than 8 bytes"));
                    }
                }
            }
            Run(20_000);
            long before = Resident();
            Run(calls);
            long after = Resident();
            Assert.True(after <= before + before / 10 + (8 << 20), $"{before} bytes became {after} in {calls} calls");
        }

        private static long Resident()
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
            using Process process = Process.GetCurrentProcess();
            return process.WorkingSet64;
        }
    }
}
