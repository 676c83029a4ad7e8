// The part of xunit that the tests use, for where xunit cannot be had. The project for an SDK has the real
// one instead of this folder.
using System;
using System.Collections;
using System.Collections.Generic;
using System.Linq;
using System.Threading.Tasks;

namespace Xunit
{
    [AttributeUsage(AttributeTargets.Method)]
    public class FactAttribute : Attribute { }

    [AttributeUsage(AttributeTargets.Method)]
    public sealed class TheoryAttribute : FactAttribute { }

    [AttributeUsage(AttributeTargets.Method, AllowMultiple = true)]
    public sealed class InlineDataAttribute : Attribute
    {
        public InlineDataAttribute(params object[] data) => Data = data;

        public object[] Data { get; }
    }

    [AttributeUsage(AttributeTargets.Assembly)]
    public sealed class CollectionBehaviorAttribute : Attribute
    {
        public bool DisableTestParallelization { get; set; }
    }

    public interface IClassFixture<T> where T : class { }

    public sealed class XunitException : Exception
    {
        public XunitException(string message) : base(message) { }
    }

    public static class Assert
    {
        public static void True(bool condition, string? message = null)
        {
            if (!condition)
            {
                throw new XunitException(message ?? "expected true");
            }
        }

        public static void False(bool condition, string? message = null) => True(!condition, message ?? "expected false");

        public static void Equal<T>(T expected, T actual)
        {
            bool same = expected is string || expected is not IEnumerable a || actual is not IEnumerable b
                ? EqualityComparer<T>.Default.Equals(expected, actual)
                : a.Cast<object>().SequenceEqual(b.Cast<object>());
            True(same, $"expected {expected}, got {actual}");
        }

        public static void NotEqual<T>(T expected, T actual) =>
            False(EqualityComparer<T>.Default.Equals(expected, actual), $"expected anything but {expected}");

        public static void Null(object? value) => True(value == null, $"expected null, got {value}");

        public static void NotNull(object? value) => True(value != null, "expected anything but null");

        public static void Same(object? expected, object? actual) => True(ReferenceEquals(expected, actual), "expected the same object");

        public static void Empty(IEnumerable values) => False(values.GetEnumerator().MoveNext(), "expected nothing");

        public static void InRange<T>(T actual, T low, T high) where T : IComparable<T> =>
            True(actual.CompareTo(low) >= 0 && actual.CompareTo(high) <= 0, $"expected {low} to {high}, got {actual}");

        public static void Contains(string expected, string? actual) =>
            True(actual != null && actual.Contains(expected), $"expected {expected} in {actual}");

        public static void DoesNotContain(string expected, string? actual) =>
            False(actual != null && actual.Contains(expected), $"expected no {expected} in {actual}");

        public static void StartsWith(string expected, string? actual) =>
            True(actual != null && actual.StartsWith(expected, StringComparison.Ordinal), $"expected {expected} before {actual}");

        public static T IsType<T>(object? value)
        {
            True(value != null && value.GetType() == typeof(T), $"expected {typeof(T)}, got {value}");
            return (T)value!;
        }

        public static T Throws<T>(Action code) where T : Exception => Caught<T>(Run(code), exact: true);

        public static T Throws<T>(Func<object?> code) where T : Exception => Caught<T>(Run(() => code()), exact: true);

        public static T ThrowsAny<T>(Action code) where T : Exception => Caught<T>(Run(code), exact: false);

        public static T ThrowsAny<T>(Func<object?> code) where T : Exception => Caught<T>(Run(() => code()), exact: false);

        public static async Task<T> ThrowsAsync<T>(Func<Task> code) where T : Exception => Caught<T>(await RunAsync(code), exact: true);

        public static async Task<T> ThrowsAnyAsync<T>(Func<Task> code) where T : Exception => Caught<T>(await RunAsync(code), exact: false);

        private static Exception? Run(Action code)
        {
            try
            {
                code();
                return null;
            }
            catch (Exception e)
            {
                return e;
            }
        }

        private static async Task<Exception?> RunAsync(Func<Task> code)
        {
            try
            {
                await code().ConfigureAwait(false);
                return null;
            }
            catch (Exception e)
            {
                return e;
            }
        }

        private static T Caught<T>(Exception? thrown, bool exact) where T : Exception
        {
            if (thrown is T expected && (!exact || thrown.GetType() == typeof(T)))
            {
                return expected;
            }
            throw new XunitException($"expected {typeof(T)}, got {thrown?.ToString() ?? "no exception"}");
        }
    }
}
