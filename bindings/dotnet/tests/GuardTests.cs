using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Linq;
using System.Text;
using System.Text.Json;
using System.Threading;
using System.Threading.Tasks;
using Siren;
using Siren.Examples;
using Xunit;

namespace Siren.Tests
{
    public sealed class GuardTests : IDisposable
    {
        private readonly SirenGuard guard = Source.Open();

        public void Dispose() => guard.Dispose();

        /// <summary>Takes many seconds if nothing ends it.</summary>
        private async Task RunLong(string way, TimeSpan? timeout, CancellationToken cancellation)
        {
            var options = new SirenScoreOptions { Windows = Source.InManyWindows.Windows, Timeout = timeout };
            var push = new SirenPushOptions { Timeout = timeout };
            SirenInput[] batch = { Source.Long, Source.Long + "." };
            using SirenStream stream = guard.NewStream(new SirenStreamOptions { Windows = options.Windows });
            switch (way)
            {
                case "score": guard.Score(Source.Long, options, cancellation); break;
                case "async": await guard.ScoreAsync(Source.Long, options, cancellation); break;
                case "batch": _ = guard.ScoreBatch(batch, options, cancellation)[0].Result; break;
                case "batch-async": _ = (await guard.ScoreBatchAsync(batch, options, cancellation))[0].Result; break;
                case "push": stream.Push(Source.Long, push, cancellation); break;
                case "push-async": await stream.PushAsync(Source.Long, push, cancellation); break;
                default: throw new ArgumentException(way);
            }
        }

        [Theory]
        [InlineData("score")]
        [InlineData("async")]
        [InlineData("batch")]
        [InlineData("batch-async")]
        [InlineData("push")]
        [InlineData("push-async")]
        public async Task ACancelledTokenEndsACall(string way)
        {
            using var source = new CancellationTokenSource();
            Task cancelling = Task.Run(async () =>
            {
                // The call is inside the library.
                while (guard.Statistics().Passes == 0)
                {
                    await Task.Delay(5);
                }
                source.Cancel();
            });
            var watch = Stopwatch.StartNew();
            var cancelled = await Assert.ThrowsAsync<OperationCanceledException>(() => RunLong(way, null, source.Token));
            await cancelling;
            Assert.Equal(source.Token, cancelled.CancellationToken);
            Assert.Equal(SirenStatus.Cancelled, Assert.IsType<SirenException>(cancelled.InnerException).Status);
            Assert.InRange(watch.ElapsedMilliseconds, 0, 10_000);
            Assert.Equal(true, guard.Statistics().Errors.ContainsKey(SirenStatus.Cancelled));
        }

        [Theory]
        [InlineData("score")]
        [InlineData("async")]
        [InlineData("batch")]
        [InlineData("batch-async")]
        [InlineData("push")]
        [InlineData("push-async")]
        public async Task ATimeLimitEndsACall(string way)
        {
            var late = await Assert.ThrowsAnyAsync<SirenException>(() => RunLong(way, TimeSpan.FromMilliseconds(20), default));
            Assert.Equal(SirenStatus.DeadlineExceeded, late.Status);
            Assert.True(way.StartsWith("batch", StringComparison.Ordinal) || late is SirenTimeoutException, late.ToString());
            Assert.Equal(true, guard.Statistics().Errors.ContainsKey(SirenStatus.DeadlineExceeded));
        }

        [Fact]
        public async Task ATokenThatHasEndedReachesNothing()
        {
            var ended = new CancellationToken(canceled: true);
            Assert.ThrowsAny<OperationCanceledException>(() => guard.Score(Source.Harmful, null, ended));
            Task<SirenResult> scoring = guard.ScoreAsync(Source.Harmful, ended);
            await Assert.ThrowsAnyAsync<OperationCanceledException>(() => scoring);
            Assert.Equal(TaskStatus.Canceled, scoring.Status);
            await Assert.ThrowsAnyAsync<OperationCanceledException>(() => SirenGuard.OpenAsync(Source.Demo, null, ended));
            Assert.Equal(0L, guard.Statistics().Requests);
        }

        [Fact]
        public async Task AGuardOpensAsynchronously()
        {
            using var source = new CancellationTokenSource();
            using SirenGuard opened = await SirenGuard.OpenAsync(Source.Demo, new SirenOpenOptions { Threads = 1 }, source.Token);
            Assert.Equal(1, opened.Info().Threads);
        }

        [Fact]
        public async Task AFullQueueIsBusy()
        {
            using SirenGuard small = Source.Open(options => options.MaxQueue = 2);
            string[] batch = Enumerable.Range(1, 8).Select(i => string.Concat(Enumerable.Repeat("word ", i))).ToArray();
            Assert.Equal(SirenStatus.Busy, Assert.Throws<SirenException>(() => small.ScoreBatch(batch)).Status);
            Assert.Equal(SirenStatus.Busy, (await Assert.ThrowsAsync<SirenException>(() => small.ScoreBatchAsync(batch))).Status);
            IReadOnlyList<SirenOutcome> outcomes = small.ScoreBatch(batch, new SirenScoreOptions { Wait = true });
            Assert.Equal(batch.Length, outcomes.Count(outcome => outcome.Error == null));
        }

        [Fact]
        public async Task ManyAsynchronousCallsNeedFewThreads()
        {
            SirenResult expected = guard.Score(Source.Harmful);
            int before = Process.GetCurrentProcess().Threads.Count;
            Task<SirenResult>[] calls = Enumerable.Range(0, 1000).Select(_ => guard.ScoreAsync(Source.Harmful)).ToArray();
            int during = Process.GetCurrentProcess().Threads.Count;
            foreach (SirenResult result in await Task.WhenAll(calls))
            {
                Assert.Equal(expected, result);
            }
            Assert.InRange(during, 1, before + 32);
        }

        [Fact]
        public void EmptyAndAbsentAreTwoThings()
        {
            Assert.Equal(guard.Score(""), guard.Score(ReadOnlySpan<byte>.Empty));
            Assert.Equal(guard.Score(""), guard.Score(new SirenInput(Array.Empty<byte>())));
            Assert.Equal(SirenStatus.InvalidArgument, Assert.Throws<SirenException>(() => guard.Score(default(SirenInput))).Status);
            Assert.Throws<ArgumentNullException>(() => guard.Score((string)null!));
            Assert.Throws<ArgumentNullException>(() => { _ = guard.ScoreAsync((string)null!); });
            Assert.Empty(guard.ScoreBatch(Array.Empty<SirenInput>()));
        }

        [Fact]
        public async Task HalfOfASurrogatePairIsNoText()
        {
            foreach (string text in new[] { "one \uD83D two", "\uDE00", "end \uD83D" })
            {
                Assert.Equal(SirenStatus.InvalidUtf8, Assert.Throws<SirenException>(() => guard.Score(text)).Status);
                Assert.Equal(SirenStatus.InvalidUtf8, (await Assert.ThrowsAsync<SirenException>(() => guard.ScoreAsync(text))).Status);
                IReadOnlyList<SirenOutcome> outcomes = guard.ScoreBatch(new[] { text, "fine" });
                Assert.Equal(SirenStatus.InvalidUtf8, outcomes[0].Error!.Status);
                Assert.Null(outcomes[1].Error);
            }
        }

        [Fact]
        public void StringsAreTheSameTextAsTheirBytes()
        {
            foreach (string text in new[] { "I love this 😀👍🏽 so much", new string('é', 300), new string('你', 2000), "𝓗𝓮𝓵𝓵𝓸 𠀀", "a\0b" })
            {
                SirenResult expected = guard.Score(Encoding.UTF8.GetBytes(text));
                Assert.Equal(expected, guard.Score(text));
                Assert.Equal(expected, guard.Score(new SirenInput(text)));
                Assert.Equal(expected, guard.ScoreBatch(new[] { text })[0].Result);
            }
        }

        [Fact]
        public void AStreamTakesSplitSurrogatePairs()
        {
            const string text = "I love this 😀 so 👍🏽";
            using SirenStream whole = guard.NewStream();
            SirenPushResult expected = whole.Push(text);
            using SirenStream split = guard.NewStream();
            SirenPushResult last = expected;
            foreach (char c in text)
            {
                last = split.Push(c.ToString());
            }
            Assert.Equal(expected.Score, last.Score);
            split.Push("\uD83D");
            Assert.Equal(SirenStatus.InvalidUtf8, Assert.Throws<SirenException>(() => split.Finish()).Status);
            Assert.Equal(SirenStatus.InvalidUtf8, Assert.Throws<SirenException>(() => split.Push(Encoding.UTF8.GetBytes("a"))).Status);
            using SirenStream fork = split.Fork();
            Assert.Equal(split.Push("\uDE00").Score, fork.PushAsync("\uDE00").GetAwaiter().GetResult().Score);
            split.Push("\uD83D");
            split.Reset();
            Assert.Equal(expected.Score, split.Push(text).Score);
            split.Finish();
        }

        [Fact]
        public void TokenScoresEndInTheScore()
        {
            foreach (bool asynchronous in new[] { false, true })
            {
                using SirenStream stream = guard.NewStream(new SirenStreamOptions { Prompt = "What do you need?" });
                var options = new SirenPushOptions { TokenScores = 100 };
                SirenPushResult result = asynchronous ? stream.PushAsync(Source.Harmful, options).GetAwaiter().GetResult() : stream.Push(Source.Harmful, options);
                Assert.Equal(result.TokenScoresCount, result.TokenScores.Count);
                Assert.Equal(result.Tokens, result.FirstScored + result.TokenScores.Count);
                Assert.Equal(result.Score, result.TokenScores[result.TokenScores.Count - 1]);
                result = stream.Push(" one two three", new SirenPushOptions { TokenScores = 1 });
                Assert.Equal(1, result.TokenScores.Count);
                Assert.InRange(result.TokenScoresCount, 2, 100);
            }
        }

        [Fact]
        public async Task AStreamBelongsToOneCaller()
        {
            using SirenStream stream = guard.NewStream(new SirenStreamOptions { Windows = Source.InManyWindows.Windows });
            using var source = new CancellationTokenSource();
            Task<SirenPushResult> pushing = stream.PushAsync(Source.Long, null, source.Token);
            Assert.Equal(SirenStatus.InUse, Assert.Throws<SirenException>(() => stream.Push(".")).Status);
            source.Cancel();
            await Assert.ThrowsAsync<OperationCanceledException>(() => pushing);
            stream.Push(".");
        }

        [Fact]
        public async Task WhatIsDisposedThrows()
        {
            SirenGuard disposed = Source.Open();
            SirenStream stream = disposed.NewStream();
            disposed.Dispose();
            disposed.Dispose();
            Assert.Throws<ObjectDisposedException>(() => disposed.Score(Source.Harmful));
            await Assert.ThrowsAsync<ObjectDisposedException>(() => disposed.ScoreAsync(Source.Harmful));
            Assert.Throws<ObjectDisposedException>(() => disposed.NewStream());
            Assert.NotNull(stream.Push(Source.Harmful).Crossing);
            stream.Dispose();
            stream.Dispose();
            Assert.Throws<ObjectDisposedException>(() => stream.Push("."));
        }

        [Fact]
        public async Task CallsThatRunOutliveTheirGuard()
        {
            SirenGuard disposed = Source.Open();
            SirenResult expected = disposed.Score(Source.Harmful);
            Task<SirenResult>[] calls = Enumerable.Range(0, 100).Select(_ => disposed.ScoreAsync(Source.Harmful)).ToArray();
            disposed.Dispose();
            foreach (Task<SirenResult> call in calls)
            {
                Assert.Equal(expected, await call);
            }
        }

        [Fact]
        public void GarbageIsFreed()
        {
            Forget();
            for (int i = 0; i < 200 && guard.Statistics().Streams > 5; i++)
            {
                GC.Collect();
                GC.WaitForPendingFinalizers();
                Thread.Sleep(5);
            }
            // A conservative collector, Mono's, may still see some on the stack.
            Assert.InRange(guard.Statistics().Streams, 0, 5);
        }

        [System.Runtime.CompilerServices.MethodImpl(System.Runtime.CompilerServices.MethodImplOptions.NoInlining)]
        private void Forget()
        {
            for (int i = 0; i < 50; i++)
            {
                guard.NewStream();
            }
            Assert.InRange(guard.Statistics().Streams, 1, 50);
        }

        [Fact]
        public void Information()
        {
            guard.Warmup();
            SirenGuardInfo info = guard.Info();
            Assert.Equal(2, info.Threads);
            Assert.Equal(512L, info.MaxLength);
            Assert.Equal(0.5, info.DefaultThreshold);
            Assert.Equal("cpu f32", info.Device + " " + info.Dtype);
            Assert.Equal(512, JsonDocument.Parse(guard.InfoJson()).RootElement.GetProperty("max_length").GetInt32());
            SirenResult result = guard.Score(Source.Harmful);
            string record = guard.AuditJson(Source.Harmful, result);
            Assert.Equal(result.Score, JsonDocument.Parse(record).RootElement.GetProperty("score").GetDouble());
            Assert.DoesNotContain("pipe", record);
            SirenStatistics statistics = guard.Statistics();
            Assert.Equal(2L, statistics.Requests);
            Assert.Equal(2L, statistics.Texts);
            Assert.Equal(1L, statistics.Harmful);
            Assert.Equal(2L, statistics.LatencyCounts.Sum());
            Assert.Equal(0, statistics.Errors.Count);
            Assert.Contains("\n# TYPE ", guard.StatisticsPrometheus());
        }

        [Fact]
        public void TheLogArrives()
        {
            int lines = 0;
            SirenLibrary.SetLog(SirenLogLevel.Trace, (level, message) =>
            {
                Interlocked.Increment(ref lines);
                throw new InvalidOperationException("is dropped");
            });
            Source.Open().Dispose();
            SirenLibrary.SetLog(SirenLogLevel.Trace, null);
            int before = lines;
            Assert.InRange(before, 1, int.MaxValue);
            Source.Open().Dispose();
            Assert.Equal(before, lines);
            Assert.Equal(SirenStatus.InvalidArgument, Assert.Throws<SirenException>(() => SirenLibrary.SetLog((SirenLogLevel)99, (_, _) => { })).Status);
        }

        [Fact]
        public void NumbersBelowZeroAreRefused()
        {
            Assert.Contains("MaxBatch", Assert.Throws<ArgumentOutOfRangeException>(() => Source.Open(options => options.MaxBatch = -1)).Message);
            Assert.Contains("Threads", Assert.Throws<ArgumentOutOfRangeException>(() => Source.Open(options => options.Threads = -1)).Message);
            using SirenStream stream = guard.NewStream();
            Assert.Throws<ArgumentOutOfRangeException>(() => stream.Push("a", new SirenPushOptions { TokenScores = -1 }));
        }

        /// <summary>
        /// A guard is replaced while it is in use: new calls take the new one, calls inside the old one
        /// finish, and one that came too late to the old one takes the new one.
        /// </summary>
        [Fact]
        public async Task AGuardIsReplacedUnderLoad()
        {
            using var current = new CurrentGuard(Source.Open());
            SirenResult expected = current.Use(g => g.Score(Source.Harmful));
            using var stop = new CancellationTokenSource();
            int calls = 0;
            Task[] callers = Enumerable.Range(0, 8).Select(i => Task.Run(async () =>
            {
                while (!stop.IsCancellationRequested)
                {
                    SirenResult result = i % 2 == 0
                        ? current.Use(g => g.Score(Source.Harmful))
                        : await current.UseAsync(g => g.ScoreAsync(Source.Harmful));
                    Assert.Equal(expected, result);
                    Interlocked.Increment(ref calls);
                }
            })).ToArray();
            for (int i = 0; i < 10; i++)
            {
                int before = Volatile.Read(ref calls);
                while (Volatile.Read(ref calls) < before + 20 && !callers.Any(caller => caller.IsCompleted))
                {
                    await Task.Delay(1);
                }
                current.Replace(Source.Open());
            }
            stop.Cancel();
            await Task.WhenAll(callers);
        }
    }
}
