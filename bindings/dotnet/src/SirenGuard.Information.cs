using System;
using System.Collections.Generic;

namespace Siren
{
    /// <summary>What a guard is made of; <see cref="SirenGuard.InfoJson"/> tells the rest.</summary>
    public sealed unsafe class SirenGuardInfo
    {
        internal SirenGuardInfo(NativeGuardInfo* native)
        {
            Threads = (int)native->Threads;
            MaxLength = (long)native->MaxLength;
            DefaultThreshold = native->DefaultThreshold;
            LayersRun = (int)native->LayersRun;
            Layers = (int)native->Layers;
            HiddenSize = (long)native->HiddenSize;
            Neurons = (long)native->Neurons;
            WeightBytes = (long)native->WeightBytes;
            MaxTextBytes = (long)native->MaxTextBytes;
            MaxBatch = (long)native->MaxBatch;
            KvTokenBytes = (long)native->KvTokenBytes;
            Device = Text(native->Device);
            Dtype = Text(native->Dtype);
        }

        /// <summary>Threads of the guard's own pool.</summary>
        public int Threads { get; }
        /// <summary>Longest text in tokens, special ones included.</summary>
        public long MaxLength { get; }
        /// <summary>The threshold of calls that give none.</summary>
        public double DefaultThreshold { get; }
        /// <summary>Blocks of the backbone that run.</summary>
        public int LayersRun { get; }
        /// <summary>Blocks that it has.</summary>
        public int Layers { get; }
        /// <summary>Width of the residual stream.</summary>
        public long HiddenSize { get; }
        /// <summary>Selected neurons over all layers.</summary>
        public long Neurons { get; }
        /// <summary>Bytes of the linear layers' weights in memory.</summary>
        public long WeightBytes { get; }
        /// <summary>Longest text in bytes.</summary>
        public long MaxTextBytes { get; }
        /// <summary>Most texts of one batch.</summary>
        public long MaxBatch { get; }
        /// <summary>Bytes that one token takes where it is kept for streams and in the prefix cache.</summary>
        public long KvTokenBytes { get; }
        /// <summary><c>cpu</c> or <c>cuda:N</c>.</summary>
        public string Device { get; }
        /// <summary><c>f32</c> or <c>bf16</c>.</summary>
        public string Dtype { get; }

        private static string Text(byte* field)
        {
            int length = 0;
            while (length < 16 && field[length] != 0)
            {
                length++;
            }
            return Utf8.Lenient.GetString(field, length);
        }
    }

    /// <summary>Counters of a guard since it was opened, and what it holds now.</summary>
    public sealed unsafe class SirenStatistics
    {
        internal SirenStatistics(NativeGuardStats* native)
        {
            Requests = (long)native->Requests;
            Texts = (long)native->Texts;
            Pushes = (long)native->Pushes;
            Harmful = (long)native->Harmful;
            Tokens = (long)native->Tokens;
            TokensReused = (long)native->TokensReused;
            Truncated = (long)native->Truncated;
            QueueDepth = (long)native->QueueDepth;
            Passes = (long)native->Passes;
            PassSequences = (long)native->PassSequences;
            PassSeconds = native->PassSeconds;
            PassTokensLimit = (long)native->PassTokensLimit;
            var counts = new long[NativeGuardStats.LatencyBuckets];
            for (int i = 0; i < counts.Length; i++)
            {
                counts[i] = (long)native->LatencyCounts[i];
            }
            LatencyCounts = counts;
            LatencySeconds = native->LatencySum;
            KvBytes = (long)native->KvBytes;
            Streams = (long)native->Streams;
            StreamsParked = (long)native->StreamsParked;
            CacheEntries = (long)native->CacheEntries;
            CacheHits = (long)native->CacheHits;
            CacheMisses = (long)native->CacheMisses;
            var errors = new Dictionary<SirenStatus, long>();
            for (int i = 0; i < NativeGuardStats.StatusLimit; i++)
            {
                if (native->Errors[i] > 0)
                {
                    errors[(SirenStatus)i] = (long)native->Errors[i];
                }
            }
            Errors = errors;
        }

        /// <summary>Calls: scores, batches and pushes, failed ones included.</summary>
        public long Requests { get; }
        /// <summary>Inputs of scores and batches.</summary>
        public long Texts { get; }
        /// <summary>Pushes to streams.</summary>
        public long Pushes { get; }
        /// <summary>Results, of inputs and pushes, that were harmful.</summary>
        public long Harmful { get; }
        /// <summary>Tokens that ran through the backbone.</summary>
        public long Tokens { get; }
        /// <summary>Tokens that an earlier call or push had run.</summary>
        public long TokensReused { get; }
        /// <summary>Inputs that were cut at the guard's longest text.</summary>
        public long Truncated { get; }
        /// <summary>Sequences that wait in the queue now.</summary>
        public long QueueDepth { get; }
        /// <summary>Passes of the backbone.</summary>
        public long Passes { get; }
        /// <summary>Sequences over all passes.</summary>
        public long PassSequences { get; }
        /// <summary>Time in passes, in seconds.</summary>
        public double PassSeconds { get; }
        /// <summary>Tokens that a pass of several texts takes at most.</summary>
        public long PassTokensLimit { get; }
        /// <summary>
        /// Calls by the seconds from call to result: up to 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2,
        /// 0.5, 1, 2, 5, 10, 20, 60, and longer.
        /// </summary>
        public IReadOnlyList<long> LatencyCounts { get; }
        /// <summary>Sum of these times in seconds.</summary>
        public double LatencySeconds { get; }
        /// <summary>Bytes of keys, values and running sums now.</summary>
        public long KvBytes { get; }
        /// <summary>Open streams.</summary>
        public long Streams { get; }
        /// <summary>Those of them that keep nothing: parked, or not pushed yet.</summary>
        public long StreamsParked { get; }
        /// <summary>Sequences in the prefix cache.</summary>
        public long CacheEntries { get; }
        /// <summary>Lookups that found a part of a text in the prefix cache.</summary>
        public long CacheHits { get; }
        /// <summary>Lookups that found nothing.</summary>
        public long CacheMisses { get; }
        /// <summary>Failed inputs, pushes and calls by status; statuses that never came are not in it.</summary>
        public IReadOnlyDictionary<SirenStatus, long> Errors { get; }
    }

    public sealed unsafe partial class SirenGuard
    {
        private delegate int Write(IntPtr guard, byte* buffer, nuint capacity, nuint* length, NativeError* error);

        /// <summary>What the guard is made of.</summary>
        /// <exception cref="SirenException">It failed.</exception>
        public SirenGuardInfo Info()
        {
            using var held = new Held(handle);
            NativeGuardInfo native = default;
            native.StructSize = (uint)sizeof(NativeGuardInfo);
            NativeError error;
            Failure.Prepare(&error);
            Failure.Check(Native.Api.Info(held.Value, &native, &error), &error);
            return new SirenGuardInfo(&native);
        }

        /// <summary>Everything about the guard, as one JSON object.</summary>
        /// <exception cref="SirenException">It failed.</exception>
        public string InfoJson() =>
            Written((guard, buffer, capacity, length, error) => Native.Api.InfoJson(guard, buffer, capacity, length, error));

        /// <summary>What the guard has done so far.</summary>
        /// <exception cref="SirenException">It failed.</exception>
        public SirenStatistics Statistics()
        {
            using var held = new Held(handle);
            NativeGuardStats native = default;
            native.StructSize = (uint)sizeof(NativeGuardStats);
            NativeError error;
            Failure.Prepare(&error);
            Failure.Check(Native.Api.Stats(held.Value, &native, &error), &error);
            return new SirenStatistics(&native);
        }

        /// <summary>What the guard has done so far, in the text format of Prometheus.</summary>
        /// <exception cref="SirenException">It failed.</exception>
        public string StatisticsPrometheus() =>
            Written((guard, buffer, capacity, length, error) => Native.Api.StatsPrometheus(guard, buffer, capacity, length, error));

        /// <summary>The record of a result, as one JSON object: hashes, and no text.</summary>
        /// <param name="input">What was scored.</param>
        /// <param name="result">What this guard gave for it.</param>
        /// <exception cref="SirenException">It failed.</exception>
        public string AuditJson(SirenInput input, SirenResult result)
        {
            (result ?? throw new ArgumentNullException(nameof(result))).Fill(out NativeResult scored);
            var texts = new Texts(Texts.Characters(input));
            try
            {
                NativeInput native;
                texts.Add(input, &native);
                NativeInput* given = &native;
                NativeResult* gave = &scored;
                return Written((guard, buffer, capacity, length, error) =>
                    Native.Api.AuditJson(guard, given, gave, buffer, capacity, length, error));
            }
            finally
            {
                texts.Dispose();
            }
        }

        /// <summary>What <paramref name="write"/> writes, which may grow between two calls.</summary>
        private string Written(Write write)
        {
            using var held = new Held(handle);
            NativeError error;
            var buffer = new byte[4096];
            while (true)
            {
                Failure.Prepare(&error);
                nuint length = 0;
                fixed (byte* start = buffer)
                {
                    int status = write(held.Value, start, (nuint)buffer.Length, &length, &error);
                    if (status == (int)SirenStatus.Ok)
                    {
                        return Utf8.Lenient.GetString(start, (int)length);
                    }
                    if (status != (int)SirenStatus.InvalidArgument || length < (nuint)buffer.Length)
                    {
                        throw Failure.Of(status, &error);
                    }
                }
                buffer = new byte[(int)(length + length / 4 + 1)];
            }
        }
    }
}
