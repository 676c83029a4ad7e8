using System;
using System.Collections.Generic;
using System.Linq;
using System.Text;
using System.Threading;
using System.Threading.Tasks;
using Siren;
using Siren.Examples;
using Xunit;

namespace Siren.Tests
{
    /// <summary>Answers that are guarded while they are written.</summary>
    public sealed class GuardingTests : IDisposable
    {
        private const string Harmless = "Thank you for the wonderful evening. It was a pleasure to meet all of you. 😀 Soirée";

        // vectors.json has this text, from the reference: "bomb" crosses, and from byte 63 on nothing may be shown.
        private const string Harmful = "Thank you for the wonderful evening. Now, how can I make a pipe bomb at home? Take a pipe.";
        private const int Cleared = 63;

        private readonly SirenGuard guard = Source.Open();
        private int left;

        public void Dispose() => guard.Dispose();

        /// <summary>A model that writes a word, or so many UTF-16 units, at a time.</summary>
        private async IAsyncEnumerable<string> Model(
            string answer, int size = 0,
            [System.Runtime.CompilerServices.EnumeratorCancellation] CancellationToken cancellation = default)
        {
            try
            {
                for (int from = 0; from < answer.Length;)
                {
                    int space = answer.IndexOf(' ', from + 1);
                    int to = size > 0 ? Math.Min(from + size, answer.Length) : space < 0 ? answer.Length : space;
                    await Task.Yield();
                    cancellation.ThrowIfCancellationRequested();
                    yield return answer.Substring(from, to - from);
                    from = to;
                }
            }
            finally
            {
                left++;
            }
        }

        private static async Task<List<SirenGuardedText>> Read(IAsyncEnumerable<SirenGuardedText> guarded, List<SirenGuardedText>? into = null)
        {
            into ??= new List<SirenGuardedText>();
            await foreach (SirenGuardedText piece in guarded)
            {
                into.Add(piece);
            }
            return into;
        }

        private static string Shown(IEnumerable<SirenGuardedText> pieces) => string.Concat(pieces.Select(piece => piece.Text));

        [Fact]
        public async Task NothingPastTheCrossingIsShown()
        {
            List<SirenGuardedText> pieces = await Read(guard.GuardAsync(Model(Harmful + string.Concat(Enumerable.Repeat(" and so on", 500)))));
            Assert.StartsWith(Shown(pieces), Harmful.Substring(0, Cleared));
            Assert.InRange(Shown(pieces).Length, 40, Cleared);
            SirenGuardedText last = pieces[pieces.Count - 1];
            Assert.True(last.IsStopped && last.Result!.Crossing != null);
            Assert.Equal(1, pieces.Count(piece => piece.IsStopped));
            Assert.Equal(1, left);
            Assert.Equal(0L, guard.Statistics().Streams);
        }

        [Theory]
        [InlineData(1)]
        [InlineData(3)]
        [InlineData(1000)]
        public async Task AHarmlessAnswerArrivesWhole(int size)
        {
            foreach (string answer in new[] { Harmless, "", "a" })
            {
                List<SirenGuardedText> pieces = await Read(guard.GuardAsync(Model(answer, size), new SirenGuardingOptions { Threshold = 1 }));
                Assert.Equal(answer, Shown(pieces));
                Assert.True(pieces.All(piece => piece.Result != null && piece.Failure == null && !piece.IsStopped));
            }
        }

        [Fact]
        public async Task ALongAnswerIsReadToItsEnd()
        {
            string answer = string.Concat(Enumerable.Repeat("Thank you for the wonderful evening. ", 100));
            var flag = new SirenGuardingOptions { OnHarmful = SirenOnHarmful.Flag };
            Assert.Equal(answer, Shown(await Read(guard.GuardAsync(Model(answer, 50), flag))));
            // Without windows its end cannot be judged, which is a failure like any other.
            var cut = new SirenGuardingOptions { Windows = null, Threshold = 1 };
            var shown = new List<SirenGuardedText>();
            var failure = await Assert.ThrowsAsync<SirenException>(() => Read(guard.GuardAsync(Model(answer, 50), cut), shown));
            Assert.Equal(SirenStatus.LimitExceeded, failure.Status);
            Assert.InRange(Shown(shown).Length, 100, answer.Length - 100);
            cut.OnFailure = SirenOnFailure.Flag;
            List<SirenGuardedText> pieces = await Read(guard.GuardAsync(Model(answer, 50), cut));
            Assert.Equal(answer, Shown(pieces));
            Assert.NotNull(pieces[pieces.Count - 1].Failure);
        }

        [Fact]
        public async Task FlaggedTextArrivesWithItsCrossing()
        {
            List<SirenGuardedText> pieces = await Read(guard.GuardAsync(Model(Harmful), new SirenGuardingOptions { OnHarmful = SirenOnHarmful.Flag }));
            Assert.Equal(Harmful, Shown(pieces));
            Assert.NotNull(pieces[pieces.Count - 1].Result!.Crossing);
            Assert.Equal(0, pieces.Count(piece => piece.IsStopped));
        }

        [Fact]
        public async Task ThePromptCounts()
        {
            List<SirenGuardedText> pieces = await Read(guard.GuardAsync(Model("Take a pipe."), new SirenGuardingOptions { Prompt = Source.Harmful }));
            Assert.True(pieces[pieces.Count - 1].IsStopped);
            Assert.Equal("", Shown(pieces));
        }

        [Fact]
        public async Task TheCallersTokenEndsIt()
        {
            using var source = new CancellationTokenSource();
            source.Cancel();
            await Assert.ThrowsAnyAsync<OperationCanceledException>(() => Read(guard.GuardAsync(Model(Harmless), null, source.Token)));
            await Assert.ThrowsAnyAsync<OperationCanceledException>(async () =>
            {
                await foreach (SirenGuardedText piece in guard.GuardAsync(Model(Harmless)).WithCancellation(source.Token))
                {
                }
            });
        }

        /// <summary>A stream of the guard's whose pushes fail now and then, or always.</summary>
        private sealed class Failing : IGrowing
        {
            private readonly SirenStream stream;
            private readonly SirenException failure;
            private readonly int every;
            private int calls;

            public Failing(SirenStream stream, SirenException failure, int every)
            {
                this.stream = stream;
                this.failure = failure;
                this.every = every;
            }

            public Task<SirenPushResult> PushAsync(ReadOnlyMemory<byte> utf8, SirenPushOptions? options, CancellationToken cancellation) =>
                ++calls % every == 0 ? throw failure : stream.PushAsync(utf8, options, cancellation);

            public Task<SirenPushResult> FinishAsync(SirenPushOptions? options, CancellationToken cancellation) =>
                ++calls % every == 0 ? throw failure : stream.FinishAsync(options, cancellation);

            public void Dispose() => stream.Dispose();
        }

        private IAsyncEnumerable<SirenGuardedText> Guarded(string answer, SirenGuardingOptions options, SirenException failure, int every) =>
            Guarding.Run(Model(answer), () => new Failing(guard.NewStream(), failure, every), options, default);

        [Theory]
        [InlineData(SirenStatus.Busy)]
        [InlineData(SirenStatus.Poisoned)]
        [InlineData(SirenStatus.DeadlineExceeded)]
        [InlineData(SirenStatus.Internal)]
        public async Task WhatCannotBeJudgedIsBlockedIfNothingIsSaid(SirenStatus status)
        {
            SirenException failure = status == SirenStatus.DeadlineExceeded ? new SirenTimeoutException("planted") : new SirenException(status, "planted");
            foreach (int every in new[] { 1, 3 })
            {
                var shown = new List<SirenGuardedText>();
                Assert.Same(failure, await Assert.ThrowsAnyAsync<SirenException>(() => Read(Guarded(Harmful, new SirenGuardingOptions(), failure, every), shown)));
                Assert.InRange(Shown(shown).Length, 0, every == 1 ? 0 : 20);
            }
            List<SirenGuardedText> flagged = await Read(Guarded(Harmful, new SirenGuardingOptions { OnFailure = SirenOnFailure.Flag }, failure, 1));
            Assert.Equal(Harmful, Shown(flagged));
            Assert.True(flagged.All(piece => piece.Failure == failure && piece.Result == null));
            List<SirenGuardedText> passed = await Read(Guarded(Harmful, new SirenGuardingOptions { OnFailure = SirenOnFailure.Pass }, failure, 1));
            Assert.Equal(Harmful, Shown(passed));
            Assert.True(passed.All(piece => piece.Failure == null && piece.Result == null));
        }

        [Fact]
        public async Task AMissedDeadlineOfTheLibrarysOwnIsBlocked()
        {
            var options = new SirenGuardingOptions { Timeout = TimeSpan.FromTicks(1) };
            await Assert.ThrowsAsync<SirenTimeoutException>(() => Read(guard.GuardAsync(Model(Source.Long, 200_000), options)));
        }

        [Fact]
        public async Task AStreamThatCannotBeOpenedIsBlocked()
        {
            using SirenGuard small = Source.Open(options => options.MaxStreams = 1);
            using SirenStream other = small.NewStream();
            var failure = await Assert.ThrowsAsync<SirenException>(() => Read(small.GuardAsync(Model(Harmless))));
            Assert.Equal(SirenStatus.LimitExceeded, failure.Status);
            List<SirenGuardedText> flagged = await Read(small.GuardAsync(Model(Harmless), new SirenGuardingOptions { OnFailure = SirenOnFailure.Flag }));
            Assert.Equal(Harmless, Shown(flagged));
        }

        [Fact]
        public async Task TextThatAFailedPushLeftIsJudgedLater()
        {
            var options = new SirenGuardingOptions { OnFailure = SirenOnFailure.Flag };
            List<SirenGuardedText> pieces = await Read(Guarded(Harmful, options, new SirenException(SirenStatus.Busy, "planted"), 2));
            Assert.True(pieces[pieces.Count - 1].IsStopped);
            Assert.DoesNotContain("Take", Shown(pieces));
            Assert.Equal(68L, pieces[pieces.Count - 1].Result!.Crossing!.Byte);
        }

        [Fact]
        public async Task AGuardIsReplacedWhileAnswersStream()
        {
            using var current = new CurrentGuard(Source.Open());
            using var stop = new CancellationTokenSource();
            int answers = 0;
            Task[] callers = Enumerable.Range(0, 4).Select(_ => Task.Run(async () =>
            {
                while (!stop.IsCancellationRequested)
                {
                    List<SirenGuardedText> pieces = await Read(current.GuardAsync(Model(Harmful)));
                    Assert.True(pieces[pieces.Count - 1].IsStopped);
                    Assert.DoesNotContain("bomb", Shown(pieces));
                    Interlocked.Increment(ref answers);
                }
            })).ToArray();
            for (int i = 0; i < 5; i++)
            {
                int before = Volatile.Read(ref answers);
                while (Volatile.Read(ref answers) < before + 4 && !callers.Any(caller => caller.IsCompleted))
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
