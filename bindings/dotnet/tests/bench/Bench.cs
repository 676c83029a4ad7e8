// What a call costs above the library's own work: microseconds a call, the median of 9 rounds. bench.sh runs it
// beside bench.c, which makes the same calls without a binding.
using System;
using System.Diagnostics;
using System.Globalization;
using System.Linq;
using System.Text;
using Siren;

internal static class Bench
{
    private static void Main(string[] arguments)
    {
        using SirenGuard guard = SirenGuard.Open(null, new SirenOpenOptions { Threads = 1, MaxTextBytes = 64 });
        string refused = new string('a', 65);
        byte[] refusedBytes = Encoding.UTF8.GetBytes(refused);
        const string text = "one two three";
        byte[] bytes = Encoding.UTF8.GetBytes(text);
        string[] batch = Enumerable.Repeat(text, 1000).ToArray();
        SirenInput[] inputs = Enumerable.Repeat(new SirenInput(bytes), 1000).ToArray();
        Run("information", 20_000, () => guard.Info());
        Run("stream, opened and freed", 20_000, () => guard.NewStream().Dispose());
        Run("refused, its exception caught", 2_000, () =>
        {
            try
            {
                guard.Score(refusedBytes);
            }
            catch (SirenException)
            {
            }
        });
        Run("refused in a batch of 1", 5_000, () => guard.ScoreBatch(new SirenInput[] { new SirenInput(refusedBytes) }));
        Run("1 text, bytes", 500, () => guard.Score(bytes));
        Run("1 text, string", 500, () => guard.Score(text));
        Run("1 text, asynchronous", 500, () => guard.ScoreAsync(text).GetAwaiter().GetResult());
        Run("1,000 texts, bytes", 3, () => guard.ScoreBatch(inputs));
        Run("1,000 texts, strings", 3, () => guard.ScoreBatch(batch));
    }

    private static void Run(string name, int calls, Action call)
    {
        var rounds = new double[9];
        call();
        long allocated = 0;
        for (int round = 0; round < rounds.Length; round++)
        {
            long before = Allocated();
            var watch = Stopwatch.StartNew();
            for (int i = 0; i < calls; i++)
            {
                call();
            }
            rounds[round] = watch.Elapsed.TotalMilliseconds * 1000 / calls;
            allocated = (Allocated() - before) / calls;
        }
        Array.Sort(rounds);
        Console.WriteLine(string.Format(CultureInfo.InvariantCulture, "{0,-32} {1,10:F2} us {2,8} bytes", name, rounds[4], allocated));
    }

    private static long Allocated() =>
#if NET8_0_OR_GREATER
        GC.GetAllocatedBytesForCurrentThread();
#else
        0;
#endif
}
