using System;
using System.Collections.Generic;
using System.Diagnostics.CodeAnalysis;

namespace Siren
{
    /// <summary>Of the windows of a text, the one that scored highest.</summary>
    public sealed record SirenWindow
    {
        private SirenWindow(ulong count, ulong index, ulong start, ulong end)
        {
            Count = (long)count;
            Index = (long)index;
            Start = (long)start;
            End = (long)end;
        }

        internal static SirenWindow? Of(ulong count, ulong index, ulong start, ulong end) =>
            count == 0 ? null : new SirenWindow(count, index, start, end);

        /// <summary>Windows that the text was read in.</summary>
        public long Count { get; }
        /// <summary>Which of them this is, from 0.</summary>
        public long Index { get; }
        /// <summary>Its first byte in the text's UTF-8; of an exchange, in the two joined with one newline.</summary>
        public long Start { get; }
        /// <summary>The byte after its last.</summary>
        public long End { get; }
    }

    /// <summary>What a text scored. Only the library makes one: a call that fails gives none.</summary>
    public sealed record SirenResult
    {
        internal SirenResult(in NativeResult native)
        {
            Score = native.Score;
            Threshold = native.Threshold;
            IsHarmful = native.IsHarmful != 0;
            IsTruncated = native.Truncated != 0;
            Tokens = (long)native.Tokens;
            Window = SirenWindow.Of(native.Windows, native.WindowIndex, native.WindowStart, native.WindowEnd);
        }

        /// <summary>Probability that the text is harmful, from 0 to 1.</summary>
        public double Score { get; }
        /// <summary>What the score was compared with.</summary>
        public double Threshold { get; }
        /// <summary>The score is at or above the threshold.</summary>
        public bool IsHarmful { get; }
        /// <summary>The text had more tokens than the guard reads.</summary>
        public bool IsTruncated { get; }
        /// <summary>Tokens that ran, special ones included.</summary>
        public long Tokens { get; }
        /// <summary>The window that scored highest; null where none were asked for.</summary>
        public SirenWindow? Window { get; }

        internal void Fill(out NativeResult native)
        {
            native = default;
            native.StructSize = Layout.ResultSize;
            native.Score = Score;
            native.Threshold = Threshold;
            native.IsHarmful = IsHarmful ? 1u : 0;
            native.Truncated = IsTruncated ? 1u : 0;
            native.Tokens = (ulong)Tokens;
            if (Window is SirenWindow window)
            {
                native.Windows = (ulong)window.Count;
                native.WindowIndex = (ulong)window.Index;
                native.WindowStart = (ulong)window.Start;
                native.WindowEnd = (ulong)window.End;
            }
        }
    }

    /// <summary>What became of one input of a batch: a result, or the failure that left it without one.</summary>
    public sealed class SirenOutcome
    {
        private readonly SirenResult? result;

        internal SirenOutcome(SirenResult result) => this.result = result;

        internal SirenOutcome(SirenException error) => Error = error;

        /// <summary>The result.</summary>
        /// <exception cref="SirenException">There is none: the failure of this input.</exception>
        public SirenResult Result => result ?? throw new SirenException(Error!.Status, Error.Message);

        /// <summary>Why there is no result; null where there is one.</summary>
        public SirenException? Error { get; }

        /// <summary>Whether there is a result, and which.</summary>
        public bool TryGetResult([NotNullWhen(true)] out SirenResult? scored) => (scored = result) != null;
    }

    /// <summary>Where a stream's running score first reached the threshold.</summary>
    public sealed record SirenCrossing
    {
        internal SirenCrossing(ulong token, ulong at)
        {
            Token = (long)token;
            Byte = (long)at;
        }

        /// <summary>The token's index from 0, special ones and the prompt's counted.</summary>
        public long Token { get; }
        /// <summary>Where that token ends in the pushed bytes.</summary>
        public long Byte { get; }
    }

    /// <summary>What all of a stream scores after a push. Only the library makes one.</summary>
    public sealed class SirenPushResult
    {
        internal SirenPushResult(in NativePushResult native, double[] tokenScores)
        {
            Score = native.Score;
            Threshold = native.Threshold;
            IsHarmful = native.IsHarmful != 0;
            IsTruncated = native.Truncated != 0;
            Tokens = (long)native.Tokens;
            Crossing = native.Crossed == 0 ? null : new SirenCrossing(native.CrossingToken, native.CrossingByte);
            ClearedBytes = (long)native.ClearedBytes;
            Window = SirenWindow.Of(native.Windows, native.WindowIndex, native.WindowStart, native.WindowEnd);
            FirstScored = (long)native.FirstScored;
            TokenScoresCount = (long)native.TokenScoresCount;
            if ((ulong)tokenScores.Length > native.TokenScoresCount)
            {
                Array.Resize(ref tokenScores, (int)native.TokenScoresCount);
            }
            TokenScores = tokenScores;
        }

        /// <summary>Probability that all that was pushed, after the prompt, is harmful, from 0 to 1.</summary>
        public double Score { get; }
        /// <summary>What the score was compared with.</summary>
        public double Threshold { get; }
        /// <summary>The score is at or above the threshold: now, whatever earlier pushes scored.</summary>
        public bool IsHarmful { get; }
        /// <summary>There are more tokens than the guard reads, and the rest was not read.</summary>
        public bool IsTruncated { get; }
        /// <summary>Tokens that were scored, special ones and the prompt's included. May shrink.</summary>
        public long Tokens { get; }
        /// <summary>Where the running score first reached the threshold, or null; it stays.</summary>
        public SirenCrossing? Crossing { get; }
        /// <summary>How many of the pushed UTF-8 bytes may be shown, whole characters. Never shrinks.</summary>
        public long ClearedBytes { get; }
        /// <summary>The window that scored highest; null where none were asked for.</summary>
        public SirenWindow? Window { get; }
        /// <summary>The running scores that the options asked for.</summary>
        public IReadOnlyList<double> TokenScores { get; }
        /// <summary>The token, from 0, that the first of them belongs to.</summary>
        public long FirstScored { get; }
        /// <summary>How many there were, which may be more than were asked for.</summary>
        public long TokenScoresCount { get; }
    }

    internal static unsafe class Layout
    {
        public static uint ResultSize => (uint)sizeof(NativeResult);
    }
}
