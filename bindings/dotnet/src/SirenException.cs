using System;
using System.Threading;

namespace Siren
{
    /// <summary>Why a call failed: the statuses of <c>siren.h</c>.</summary>
    public enum SirenStatus
    {
        /// <summary>The call succeeded. No exception has it.</summary>
        Ok = 0,
        /// <summary>An argument is missing, contradictory or out of its range.</summary>
        InvalidArgument = 1,
        /// <summary>The handle was freed, is foreign, or names another kind of object.</summary>
        InvalidHandle = 2,
        /// <summary>Text is not valid: bytes are not UTF-8, or half of a surrogate pair stands alone.</summary>
        InvalidUtf8 = 3,
        /// <summary>A file, directory, repository or revision does not exist.</summary>
        NotFound = 4,
        /// <summary>The operating system refused to read or write something that exists.</summary>
        Io = 5,
        /// <summary>A model's files are damaged, contradictory or outside what is accepted.</summary>
        InvalidModel = 6,
        /// <summary>A valid request that this build, device or artifact kind cannot serve.</summary>
        Unsupported = 7,
        /// <summary>The hub could not be reached, or answered with a failure.</summary>
        Network = 8,
        /// <summary>The hub refused access: a token is missing or lacks rights.</summary>
        Unauthorized = 9,
        /// <summary>A download would be needed, and the network was switched off by option.</summary>
        Offline = 10,
        /// <summary>A text, batch or file is larger than the limit that was set for it.</summary>
        LimitExceeded = 11,
        /// <summary>Memory for the request could not be had.</summary>
        OutOfMemory = 12,
        /// <summary>The queue is full: try again later.</summary>
        Busy = 13,
        /// <summary>The call was cancelled by its caller.</summary>
        Cancelled = 14,
        /// <summary>The deadline passed before the result was there.</summary>
        DeadlineExceeded = 15,
        /// <summary>An earlier panic broke this guard; open a new one.</summary>
        Poisoned = 16,
        /// <summary>The process was forked after the guard was opened, or while one was being opened.</summary>
        Forked = 17,
        /// <summary>The model computed a value that is not a finite score.</summary>
        NonFinite = 18,
        /// <summary>A bug inside the library, caught at its boundary.</summary>
        Internal = 19,
        /// <summary>Another thread is using this stream: it belongs to one thread at a time.</summary>
        InUse = 20,
    }

    /// <summary>A failed call of the library. It holds no score: there is none.</summary>
    public class SirenException : Exception
    {
        /// <summary>Makes the failure of a call.</summary>
        /// <param name="status">What kind of failure it is.</param>
        /// <param name="message">What was wrong and what was expected.</param>
        public SirenException(SirenStatus status, string message) : base(message) => Status = status;

        /// <summary>What kind of failure it is.</summary>
        public SirenStatus Status { get; }
    }

    /// <summary>
    /// The time limit of a call passed before its result was there. It is a
    /// <see cref="SirenException"/>, so that who blocks on any failure blocks on this one too.
    /// </summary>
    public sealed class SirenTimeoutException : SirenException
    {
        /// <summary>Makes the failure of a call whose time limit passed.</summary>
        /// <param name="message">What was wrong.</param>
        public SirenTimeoutException(string message) : base(SirenStatus.DeadlineExceeded, message) { }
    }

    /// <summary>Exceptions from the library's statuses.</summary>
    internal static unsafe class Failure
    {
        /// <summary>Prepares an error on the stack, of which the library writes the rest when it fails.</summary>
        public static void Prepare(NativeError* error)
        {
            error->StructSize = (uint)sizeof(NativeError);
            error->Status = 0;
            error->Message[0] = 0;
        }

        /// <summary>Throws what <paramref name="status"/> says, if it is no success.</summary>
        public static void Check(int status, NativeError* error, CancellationToken token = default)
        {
            if (status != (int)SirenStatus.Ok)
            {
                throw Ended(Of(status, error), token);
            }
        }

        /// <summary>The exception of a status other than <see cref="SirenStatus.Ok"/>.</summary>
        public static SirenException Of(int status, NativeError* error)
        {
            int length = 0;
            while (error != null && length < NativeError.MessageSize && error->Message[length] != 0)
            {
                length++;
            }
            string name = SirenLibrary.Name((SirenStatus)status);
            string message = length == 0 ? name : name + ": " + Utf8.Lenient.GetString(error->Message, length);
            return status == (int)SirenStatus.DeadlineExceeded
                ? new SirenTimeoutException(message)
                : new SirenException((SirenStatus)status, message);
        }

        /// <summary>A cancelled call ends as everywhere in .NET.</summary>
        public static Exception Ended(SirenException failure, CancellationToken token) =>
            failure.Status == SirenStatus.Cancelled
                ? new OperationCanceledException(failure.Message, failure, token)
                : (Exception)failure;
    }
}
