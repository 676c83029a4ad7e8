using System;
using System.Collections.Generic;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Threading;
using System.Threading.Tasks;

namespace Siren
{
    /// <summary>An asynchronous call, from its start to its callback.</summary>
    internal sealed class Pending<T>
    {
        // Continuations must not run on the library's thread, which is to return soon.
        private readonly TaskCompletionSource<T> source = new TaskCompletionSource<T>(TaskCreationOptions.RunContinuationsAsynchronously);
        private readonly CancellationToken token;
        private Cancelling cancelling;
        private GCHandle self;
        private GCHandle scores;

        public Pending(CancellationToken token) => this.token = token;

        /// <summary>The handle by which the library cancels the call.</summary>
        public IntPtr Cancel()
        {
            cancelling = new Cancelling(token);
            return cancelling.Value;
        }

        /// <summary>What an asynchronous push writes its running scores to; pinned until it has ended.</summary>
        public double[] TokenScores { get; private set; } = Array.Empty<double>();

        public IntPtr Pin(double[] tokenScores)
        {
            TokenScores = tokenScores;
            if (tokenScores.Length == 0)
            {
                return IntPtr.Zero;
            }
            scores = GCHandle.Alloc(tokenScores, GCHandleType.Pinned);
            return scores.AddrOfPinnedObject();
        }

        /// <summary>What the callback finds the call by, once.</summary>
        public IntPtr Begin()
        {
            self = GCHandle.Alloc(this);
            return GCHandle.ToIntPtr(self);
        }

        public static Pending<T> Take(IntPtr userData)
        {
            GCHandle handle = GCHandle.FromIntPtr(userData);
            var pending = (Pending<T>)handle.Target!;
            handle.Free();
            return pending;
        }

        /// <summary>The library refused the call: there will be no callback.</summary>
        public void Refused()
        {
            if (self.IsAllocated)
            {
                self.Free();
            }
        }

        public void Succeed(T value) => source.TrySetResult(value);

        public void Fail(Exception reason) => source.TrySetException(reason);

        public unsafe void Fail(int status, NativeError* error) => Fail(Failure.Ended(Failure.Of(status, error), token));

        public CancellationToken Token => token;

        /// <summary>The call's task. An OperationCanceledException that passes through here makes it Canceled.</summary>
        public async Task<T> Run()
        {
            try
            {
                return await source.Task.ConfigureAwait(false);
            }
            finally
            {
                cancelling.Dispose();
                if (scores.IsAllocated)
                {
                    scores.Free();
                }
            }
        }
    }

    /// <summary>Told by the library how a download goes.</summary>
    internal sealed class Downloading
    {
        private readonly IProgress<SirenDownload> progress;

        public Downloading(IProgress<SirenDownload> progress) => this.progress = progress;

        /// <summary>What the program's own code threw, which cannot pass through the library.</summary>
        public Exception? Thrown { get; private set; }

        public void Report(SirenDownload download)
        {
            try
            {
                progress.Report(download);
            }
            catch (Exception e)
            {
                Thrown ??= e;
            }
        }
    }

    /// <summary>What the library calls. Nothing may be thrown out of here.</summary>
    internal static unsafe class Callbacks
    {
        public static volatile Action<SirenLogLevel, string>? Log;

#if NET8_0_OR_GREATER
        public static IntPtr ScorePointer => (IntPtr)(delegate* unmanaged[Cdecl]<IntPtr, int, NativeResult*, NativeError*, void>)&OnScore;
        public static IntPtr BatchPointer => (IntPtr)(delegate* unmanaged[Cdecl]<IntPtr, int, NativeResult**, NativeError**, nuint, NativeError*, void>)&OnBatch;
        public static IntPtr PushPointer => (IntPtr)(delegate* unmanaged[Cdecl]<IntPtr, int, NativePushResult*, NativeError*, void>)&OnPush;
        public static IntPtr ProgressPointer => (IntPtr)(delegate* unmanaged[Cdecl]<IntPtr, byte*, nuint, ulong, ulong, void>)&OnProgress;
        public static IntPtr LogPointer => (IntPtr)(delegate* unmanaged[Cdecl]<IntPtr, int, byte*, nuint, void>)&OnLog;
#else
        [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
        private delegate void ScoreCallback(IntPtr userData, int status, NativeResult* result, NativeError* error);

        [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
        private delegate void BatchCallback(IntPtr userData, int status, NativeResult** results, NativeError** errors, UIntPtr count, NativeError* error);

        [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
        private delegate void PushCallback(IntPtr userData, int status, NativePushResult* result, NativeError* error);

        [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
        private delegate void ProgressCallback(IntPtr userData, byte* file, UIntPtr length, ulong done, ulong total);

        [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
        private delegate void LogCallback(IntPtr userData, int level, byte* message, UIntPtr length);

        // Kept: the library may call them as long as the process lives.
        private static readonly ScoreCallback KeptScore = OnScore;
        private static readonly BatchCallback KeptBatch = OnBatch;
        private static readonly PushCallback KeptPush = OnPush;
        private static readonly ProgressCallback KeptProgress = OnProgress;
        private static readonly LogCallback KeptLog = OnLog;

        public static readonly IntPtr ScorePointer = Marshal.GetFunctionPointerForDelegate(KeptScore);
        public static readonly IntPtr BatchPointer = Marshal.GetFunctionPointerForDelegate(KeptBatch);
        public static readonly IntPtr PushPointer = Marshal.GetFunctionPointerForDelegate(KeptPush);
        public static readonly IntPtr ProgressPointer = Marshal.GetFunctionPointerForDelegate(KeptProgress);
        public static readonly IntPtr LogPointer = Marshal.GetFunctionPointerForDelegate(KeptLog);
#endif

#if NET8_0_OR_GREATER
        [UnmanagedCallersOnly(CallConvs = new[] { typeof(CallConvCdecl) })]
#else
        [AOT.MonoPInvokeCallback(typeof(ScoreCallback))]
#endif
        private static void OnScore(IntPtr userData, int status, NativeResult* result, NativeError* error)
        {
            Pending<SirenResult> pending = Pending<SirenResult>.Take(userData);
            try
            {
                if (status == (int)SirenStatus.Ok)
                {
                    pending.Succeed(new SirenResult(*result));
                }
                else
                {
                    pending.Fail(status, error);
                }
            }
            catch (Exception e)
            {
                pending.Fail(e);
            }
        }

#if NET8_0_OR_GREATER
        [UnmanagedCallersOnly(CallConvs = new[] { typeof(CallConvCdecl) })]
#else
        [AOT.MonoPInvokeCallback(typeof(BatchCallback))]
#endif
        private static void OnBatch(IntPtr userData, int status, NativeResult** results, NativeError** errors, nuint count, NativeError* error)
        {
            Pending<IReadOnlyList<SirenOutcome>> pending = Pending<IReadOnlyList<SirenOutcome>>.Take(userData);
            try
            {
                if (status != (int)SirenStatus.Ok)
                {
                    pending.Fail(status, error);
                    return;
                }
                var outcomes = new SirenOutcome[(int)count];
                for (int i = 0; i < outcomes.Length; i++)
                {
                    outcomes[i] = Outcome(results[i], errors[i], pending.Token);
                }
                pending.Succeed(outcomes);
            }
            catch (Exception e)
            {
                pending.Fail(e);
            }
        }

        /// <summary>What became of one input of a batch; a batch that its caller cancelled is cancelled as a whole.</summary>
        public static SirenOutcome Outcome(NativeResult* result, NativeError* error, CancellationToken token)
        {
            if (result->Status == (int)SirenStatus.Ok)
            {
                return new SirenOutcome(new SirenResult(*result));
            }
            SirenException failure = Failure.Of(result->Status, error);
            return failure.Status == SirenStatus.Cancelled ? throw Failure.Ended(failure, token) : new SirenOutcome(failure);
        }

#if NET8_0_OR_GREATER
        [UnmanagedCallersOnly(CallConvs = new[] { typeof(CallConvCdecl) })]
#else
        [AOT.MonoPInvokeCallback(typeof(PushCallback))]
#endif
        private static void OnPush(IntPtr userData, int status, NativePushResult* result, NativeError* error)
        {
            Pending<SirenPushResult> pending = Pending<SirenPushResult>.Take(userData);
            try
            {
                if (status == (int)SirenStatus.Ok)
                {
                    pending.Succeed(new SirenPushResult(*result, pending.TokenScores));
                }
                else
                {
                    pending.Fail(status, error);
                }
            }
            catch (Exception e)
            {
                pending.Fail(e);
            }
        }

#if NET8_0_OR_GREATER
        [UnmanagedCallersOnly(CallConvs = new[] { typeof(CallConvCdecl) })]
#else
        [AOT.MonoPInvokeCallback(typeof(ProgressCallback))]
#endif
        private static void OnProgress(IntPtr userData, byte* file, nuint length, ulong done, ulong total)
        {
            var downloading = (Downloading)GCHandle.FromIntPtr(userData).Target!;
            downloading.Report(new SirenDownload(Utf8.Lenient.GetString(file, (int)length), (long)done, (long)total));
        }

#if NET8_0_OR_GREATER
        [UnmanagedCallersOnly(CallConvs = new[] { typeof(CallConvCdecl) })]
#else
        [AOT.MonoPInvokeCallback(typeof(LogCallback))]
#endif
        private static void OnLog(IntPtr userData, int level, byte* message, nuint length)
        {
            try
            {
                // One that was ended may still get a line that was on its way.
                Log?.Invoke((SirenLogLevel)level, Utf8.Lenient.GetString(message, (int)length));
            }
            catch (Exception)
            {
                // There is nobody to tell: the library has no use for it, and the log is this.
            }
        }
    }
}
