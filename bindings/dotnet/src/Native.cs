using System;

[module: System.Runtime.CompilerServices.SkipLocalsInit]

namespace Siren
{
    // The structs of siren.h, 64-bit. Names are those of the header without underscores: the tests hold
    // sizes and offsets against include/siren-abi.json.

    internal unsafe struct NativeText
    {
        public byte* Data;
        public nuint Length;
    }

    internal unsafe struct NativeError
    {
        public const int MessageSize = 1008;
        public uint StructSize;
        public int Status;
        public ulong MessageLength;
        public fixed byte Message[MessageSize];
    }

    internal unsafe struct NativeOpenOptions
    {
        public uint StructSize;
        public uint Threads;
        public NativeText Model;
        public NativeText Backbone;
        public NativeText Device;
        public NativeText Dtype;
        public NativeText CacheDir;
        public NativeText HubEndpoint;
        public NativeText HubToken;
        public NativeText DataDir;
        public ulong MaxLength;
        public ulong MaxTextBytes;
        public ulong MaxBatch;
        public ulong MaxQueue;
        public uint Offline;
        public uint ReadWeights;
        public IntPtr Progress;
        public IntPtr ProgressUserData;
        public ulong MaxStreams;
        public ulong KvBytes;
        public ulong PrefixCacheBytes;
        public uint NoPrefixCache;
        public uint Reserved;
        public NativeText PackedCache;
    }

    internal struct NativeInput
    {
        public uint StructSize;
        public uint Reserved;
        public NativeText Text;
        public NativeText Prompt;
        public NativeText Response;
    }

    internal struct NativeScoreOptions
    {
        public uint StructSize;
        public uint HasThreshold;
        public double Threshold;
        public IntPtr Cancel;
        public ulong TimeoutMs;
        public uint Wait;
        public uint Windows;
        public ulong WindowTokens;
        public ulong WindowStride;
    }

    internal struct NativeResult
    {
        public uint StructSize;
        public int Status;
        public double Score;
        public double Threshold;
        public uint IsHarmful;
        public uint Truncated;
        public ulong Tokens;
        public ulong Windows;
        public ulong WindowIndex;
        public ulong WindowStart;
        public ulong WindowEnd;
    }

    internal struct NativeStreamOptions
    {
        public uint StructSize;
        public uint HasThreshold;
        public double Threshold;
        public NativeText Prompt;
        public ulong Hysteresis;
        public uint Windows;
        public uint Reserved;
        public ulong WindowTokens;
        public ulong WindowStride;
    }

    internal unsafe struct NativePushOptions
    {
        public uint StructSize;
        public uint Wait;
        public IntPtr Cancel;
        public ulong TimeoutMs;
        public double* TokenScores;
        public nuint TokenScoresCapacity;
    }

    internal struct NativePushResult
    {
        public uint StructSize;
        public int Status;
        public double Score;
        public double Threshold;
        public uint IsHarmful;
        public uint Truncated;
        public ulong Tokens;
        public uint Crossed;
        public uint Reserved;
        public ulong CrossingToken;
        public ulong CrossingByte;
        public ulong ClearedBytes;
        public ulong Windows;
        public ulong WindowIndex;
        public ulong WindowStart;
        public ulong WindowEnd;
        public ulong FirstScored;
        public ulong TokenScoresCount;
    }

    internal unsafe struct NativeGuardInfo
    {
        public uint StructSize;
        public uint Threads;
        public ulong MaxLength;
        public double DefaultThreshold;
        public uint LayersRun;
        public uint Layers;
        public ulong HiddenSize;
        public ulong Neurons;
        public ulong WeightBytes;
        public ulong MaxTextBytes;
        public ulong MaxBatch;
        public ulong KvTokenBytes;
        public fixed byte Device[16];
        public fixed byte Dtype[16];
    }

    internal unsafe struct NativeGuardStats
    {
        public const int LatencyBuckets = 16;
        public const int StatusLimit = 32;
        public uint StructSize;
        public uint Reserved;
        public ulong Requests;
        public ulong Texts;
        public ulong Pushes;
        public ulong Harmful;
        public ulong Tokens;
        public ulong TokensReused;
        public ulong Truncated;
        public ulong QueueDepth;
        public ulong Passes;
        public ulong PassSequences;
        public double PassSeconds;
        public ulong PassTokensLimit;
        public fixed ulong LatencyCounts[LatencyBuckets];
        public double LatencySum;
        public ulong KvBytes;
        public ulong Streams;
        public ulong StreamsParked;
        public ulong CacheEntries;
        public ulong CacheHits;
        public ulong CacheMisses;
        public fixed ulong Errors[StatusLimit];
    }

    /// <summary>
    /// The functions of siren.h in the loaded library. They are called through their addresses and not by
    /// DllImport, whose search neither knows where packages put a library nor says where it looked, and
    /// is another one in every runtime.
    /// </summary>
    internal sealed unsafe class Native
    {
        public const uint AbiMajor = 0;
        public const uint AbiMinor = 3;

        private static readonly object Loading = new object();
        private static volatile Native? loaded;

        public readonly string Path;
        public readonly delegate* unmanaged[Cdecl]<uint> AbiVersion;
        public readonly delegate* unmanaged[Cdecl]<byte*> Version;
        public readonly delegate* unmanaged[Cdecl]<int, byte*> StatusName;
        public readonly delegate* unmanaged[Cdecl]<NativeOpenOptions*, IntPtr*, NativeError*, int> Open;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, int> Free;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, NativeError*, int> Warmup;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, NativeGuardInfo*, NativeError*, int> Info;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, byte*, nuint, nuint*, NativeError*, int> InfoJson;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, NativeGuardStats*, NativeError*, int> Stats;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, byte*, nuint, nuint*, NativeError*, int> StatsPrometheus;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, NativeInput*, NativeResult*, byte*, nuint, nuint*, NativeError*, int> AuditJson;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, IntPtr, int, NativeError*, int> LogSet;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, NativeInput*, NativeScoreOptions*, NativeResult*, NativeError*, int> Score;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, NativeInput*, nuint, NativeScoreOptions*, NativeResult*, NativeError*, NativeError*, int> ScoreBatch;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, NativeInput*, NativeScoreOptions*, IntPtr, IntPtr, NativeError*, int> ScoreAsync;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, NativeInput*, nuint, NativeScoreOptions*, IntPtr, IntPtr, NativeError*, int> ScoreBatchAsync;
        public readonly delegate* unmanaged[Cdecl]<IntPtr*, NativeError*, int> CancelTokenNew;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, NativeError*, int> Cancel;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, int> CancelTokenFree;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, NativeStreamOptions*, IntPtr*, NativeError*, int> StreamNew;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, byte*, nuint, NativePushOptions*, NativePushResult*, NativeError*, int> StreamPush;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, byte*, nuint, NativePushOptions*, IntPtr, IntPtr, NativeError*, int> StreamPushAsync;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, NativePushOptions*, NativePushResult*, NativeError*, int> StreamFinish;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, NativePushOptions*, IntPtr, IntPtr, NativeError*, int> StreamFinishAsync;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, NativeError*, int> StreamReset;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, IntPtr*, NativeError*, int> StreamFork;
        public readonly delegate* unmanaged[Cdecl]<IntPtr, int> StreamFree;

        /// <summary>The library, which is loaded when it is first needed.</summary>
        /// <exception cref="DllNotFoundException">It is not found: the message says where it was looked for.</exception>
        public static Native Api => loaded ?? Load();

        private static Native Load()
        {
            lock (Loading)
            {
                return loaded ??= new Native(NativeLoader.Load());
            }
        }

        private Native(NativeLoader.Loaded library)
        {
            Path = library.Path;
            AbiVersion = (delegate* unmanaged[Cdecl]<uint>)library.Find("siren_abi_version");
            uint version = AbiVersion();
            if (version >> 16 != AbiMajor || (version & 0xFFFF) < AbiMinor)
            {
                throw new DllNotFoundException(
                    $"{Path} has version {version >> 16}.{version & 0xFFFF} of libsiren's ABI, expected {AbiMajor}.{AbiMinor} or a later minor version");
            }
            Version = (delegate* unmanaged[Cdecl]<byte*>)library.Find("siren_version");
            StatusName = (delegate* unmanaged[Cdecl]<int, byte*>)library.Find("siren_status_name");
            Open = (delegate* unmanaged[Cdecl]<NativeOpenOptions*, IntPtr*, NativeError*, int>)library.Find("siren_open");
            Free = (delegate* unmanaged[Cdecl]<IntPtr, int>)library.Find("siren_free");
            Warmup = (delegate* unmanaged[Cdecl]<IntPtr, NativeError*, int>)library.Find("siren_warmup");
            Info = (delegate* unmanaged[Cdecl]<IntPtr, NativeGuardInfo*, NativeError*, int>)library.Find("siren_info");
            InfoJson = (delegate* unmanaged[Cdecl]<IntPtr, byte*, nuint, nuint*, NativeError*, int>)library.Find("siren_info_json");
            Stats = (delegate* unmanaged[Cdecl]<IntPtr, NativeGuardStats*, NativeError*, int>)library.Find("siren_stats");
            StatsPrometheus = (delegate* unmanaged[Cdecl]<IntPtr, byte*, nuint, nuint*, NativeError*, int>)library.Find("siren_stats_prometheus");
            AuditJson = (delegate* unmanaged[Cdecl]<IntPtr, NativeInput*, NativeResult*, byte*, nuint, nuint*, NativeError*, int>)library.Find("siren_audit_json");
            LogSet = (delegate* unmanaged[Cdecl]<IntPtr, IntPtr, int, NativeError*, int>)library.Find("siren_log_set");
            Score = (delegate* unmanaged[Cdecl]<IntPtr, NativeInput*, NativeScoreOptions*, NativeResult*, NativeError*, int>)library.Find("siren_score");
            ScoreBatch = (delegate* unmanaged[Cdecl]<IntPtr, NativeInput*, nuint, NativeScoreOptions*, NativeResult*, NativeError*, NativeError*, int>)library.Find("siren_score_batch");
            ScoreAsync = (delegate* unmanaged[Cdecl]<IntPtr, NativeInput*, NativeScoreOptions*, IntPtr, IntPtr, NativeError*, int>)library.Find("siren_score_async");
            ScoreBatchAsync = (delegate* unmanaged[Cdecl]<IntPtr, NativeInput*, nuint, NativeScoreOptions*, IntPtr, IntPtr, NativeError*, int>)library.Find("siren_score_batch_async");
            CancelTokenNew = (delegate* unmanaged[Cdecl]<IntPtr*, NativeError*, int>)library.Find("siren_cancel_token_new");
            Cancel = (delegate* unmanaged[Cdecl]<IntPtr, NativeError*, int>)library.Find("siren_cancel");
            CancelTokenFree = (delegate* unmanaged[Cdecl]<IntPtr, int>)library.Find("siren_cancel_token_free");
            StreamNew = (delegate* unmanaged[Cdecl]<IntPtr, NativeStreamOptions*, IntPtr*, NativeError*, int>)library.Find("siren_stream_new");
            StreamPush = (delegate* unmanaged[Cdecl]<IntPtr, byte*, nuint, NativePushOptions*, NativePushResult*, NativeError*, int>)library.Find("siren_stream_push");
            StreamPushAsync = (delegate* unmanaged[Cdecl]<IntPtr, byte*, nuint, NativePushOptions*, IntPtr, IntPtr, NativeError*, int>)library.Find("siren_stream_push_async");
            StreamFinish = (delegate* unmanaged[Cdecl]<IntPtr, NativePushOptions*, NativePushResult*, NativeError*, int>)library.Find("siren_stream_finish");
            StreamFinishAsync = (delegate* unmanaged[Cdecl]<IntPtr, NativePushOptions*, IntPtr, IntPtr, NativeError*, int>)library.Find("siren_stream_finish_async");
            StreamReset = (delegate* unmanaged[Cdecl]<IntPtr, NativeError*, int>)library.Find("siren_stream_reset");
            StreamFork = (delegate* unmanaged[Cdecl]<IntPtr, IntPtr*, NativeError*, int>)library.Find("siren_stream_fork");
            StreamFree = (delegate* unmanaged[Cdecl]<IntPtr, int>)library.Find("siren_stream_free");
        }
    }
}
