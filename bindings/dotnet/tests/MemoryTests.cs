using System;
using System.Diagnostics;
using System.Globalization;
using System.Threading;
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
            using var source = new CancellationTokenSource();
            // An empty batch runs nothing, and takes the way of every call: handles, cancelling, callbacks.
            SirenInput[] none = Array.Empty<SirenInput>();
            void Run(int count)
            {
                for (int i = 0; i < count; i++)
                {
                    if (asynchronous)
                    {
                        guard.ScoreBatchAsync(none, null, source.Token).GetAwaiter().GetResult();
                    }
                    else
                    {
                        guard.ScoreBatch(none, null, source.Token);
                        guard.NewStream().Dispose();
                    }
                    if (i % 10_000 == 0)
                    {
                        // Else the collector of modern .NET takes as much as the processor's cache before it looks.
                        GC.Collect();
                    }
                    // What throws is dearer, and runs less often.
                    if (i % 100 == 0)
                    {
                        Assert.ThrowsAny<SirenException>(() => asynchronous
                            ? guard.ScoreAsync("more than 8 bytes").GetAwaiter().GetResult() : guard.Score("more than 8 bytes"));
                    }
                }
            }
            Run(40_000);
            long managed = GC.GetTotalMemory(forceFullCollection: true), resident = Resident();
            Run(calls);
            long managedAfter = GC.GetTotalMemory(forceFullCollection: true), residentAfter = Resident();
            Console.WriteLine($"{managed >> 10} kB of {resident >> 10}, then {managedAfter >> 10} of {residentAfter >> 10} after {calls} calls");
            Assert.True(managedAfter <= managed + (2 << 20), $"{managed} bytes of objects became {managedAfter} in {calls} calls");
            // Collectors keep pages in reserve.
            Assert.True(residentAfter <= resident + resident / 10 + (8 << 20), $"{resident} bytes became {residentAfter} in {calls} calls");
        }

        private static long Resident()
        {
            using Process process = Process.GetCurrentProcess();
            return process.WorkingSet64;
        }
    }
}
