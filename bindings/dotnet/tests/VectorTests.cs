using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Text;
using System.Text.Json;
using Siren;
using Xunit;

namespace Siren.Tests
{
    /// <summary>bindings/vectors: what every binding must give.</summary>
    public sealed class VectorTests : IDisposable
    {
        private readonly JsonElement vectors = Source.Json("bindings", "vectors", "vectors.json");
        private readonly Dictionary<string, SirenGuard> guards = new Dictionary<string, SirenGuard>();
        private readonly double tolerance;

        public VectorTests()
        {
            tolerance = vectors.GetProperty("tolerance").GetDouble();
            foreach (JsonProperty guard in vectors.GetProperty("guards").EnumerateObject())
            {
                guards[guard.Name] = Open(guard.Value);
            }
        }

        public void Dispose()
        {
            foreach (SirenGuard guard in guards.Values)
            {
                guard.Dispose();
            }
        }

        [Fact]
        public void Opens()
        {
            foreach (JsonElement vector in vectors.GetProperty("opens").EnumerateArray())
            {
                Fails(vector, () => Open(vector.GetProperty("open")));
            }
        }

        [Fact]
        public void Scores()
        {
            var together = new List<(JsonElement Vector, SirenInput Input, SirenResult? Result)>();
            int count = 0;
            foreach (JsonElement vector in vectors.GetProperty("scores").EnumerateArray())
            {
                SirenGuard guard = Guard(vector);
                SirenInput input = Input(vector);
                SirenScoreOptions? options = Options(vector);
                SirenResult? result = null;
                if (vector.TryGetProperty("status", out _))
                {
                    Fails(vector, () => guard.Score(input, options));
                    FailsIn(vector, Assert.ThrowsAny<SirenException>(() => guard.ScoreAsync(input, options).GetAwaiter().GetResult()));
                }
                else
                {
                    result = guard.Score(input, options);
                    Expect(vector, result);
                    Assert.Equal(result, guard.ScoreAsync(input, options).GetAwaiter().GetResult());
                    // The ways in for a text alone.
                    if (Text(vector, "text") is byte[] text)
                    {
                        Assert.Equal(result, guard.Score(text, options));
                        Assert.Equal(result, guard.Score(Encoding.UTF8.GetString(text), options));
                    }
                }
                if (options == null && !vector.TryGetProperty("guard", out _))
                {
                    together.Add((vector, input, result));
                }
                count++;
            }
            Assert.True(count > 40 && together.Count >= 20, $"{count} vectors, {together.Count} without options");
            SirenInput[] inputs = together.Select(one => one.Input).ToArray();
            foreach (IReadOnlyList<SirenOutcome> outcomes in new[]
            {
                guards["demo"].ScoreBatch(inputs), guards["demo"].ScoreBatchAsync(inputs).GetAwaiter().GetResult(),
            })
            {
                Assert.Equal(inputs.Length, outcomes.Count);
                for (int i = 0; i < inputs.Length; i++)
                {
                    SirenOutcome outcome = outcomes[i];
                    if (together[i].Result == null)
                    {
                        FailsIn(together[i].Vector, outcome.Error!);
                        Assert.False(outcome.TryGetResult(out SirenResult? none));
                        Assert.Null(none);
                        Assert.Throws<SirenException>(() => outcome.Result);
                    }
                    else
                    {
                        // Bit for bit.
                        Assert.Equal(together[i].Result, outcome.Result);
                    }
                }
            }
        }

        [Fact]
        public void Batches()
        {
            foreach (JsonElement vector in vectors.GetProperty("batches").EnumerateArray())
            {
                SirenInput[] inputs = vector.GetProperty("ids").EnumerateArray()
                    .Select(id => Input(vectors.GetProperty("scores").EnumerateArray().Single(score => Id(score) == id.GetString()))).ToArray();
                Fails(vector, () => Guard(vector).ScoreBatch(inputs));
                FailsIn(vector, Assert.ThrowsAny<SirenException>(() => Guard(vector).ScoreBatchAsync(inputs).GetAwaiter().GetResult()));
            }
        }

        [Theory]
        [InlineData(false)]
        [InlineData(true)]
        public void Streams(bool asynchronous)
        {
            int steps = 0;
            foreach (JsonElement vector in vectors.GetProperty("streams").EnumerateArray())
            {
                var options = new SirenStreamOptions();
                if (Text(vector, "prompt") is byte[] prompt)
                {
                    options.Prompt = prompt;
                }
                if (vector.TryGetProperty("options", out JsonElement given))
                {
                    options.Threshold = Threshold(given);
                    options.Windows = Windows(given);
                    options.Hysteresis = Whole(given, "hysteresis");
                }
                if (vector.TryGetProperty("status", out _))
                {
                    Fails(vector, () => Guard(vector).NewStream(options));
                    continue;
                }
                var streams = new Dictionary<string, SirenStream> { [""] = Guard(vector).NewStream(options) };
                foreach (JsonElement step in vector.GetProperty("steps").EnumerateArray())
                {
                    steps++;
                    SirenStream stream = streams[step.TryGetProperty("on", out JsonElement on) ? on.GetString()! : ""];
                    if (step.TryGetProperty("fork", out JsonElement fork))
                    {
                        streams[fork.GetString()!] = stream.Fork();
                    }
                    else if (step.TryGetProperty("reset", out _))
                    {
                        stream.Reset();
                    }
                    else
                    {
                        Func<SirenPushResult> run;
                        if (Text(step, "push") is byte[] chunk)
                        {
                            run = asynchronous ? () => stream.PushAsync(chunk).GetAwaiter().GetResult() : () => stream.Push(chunk);
                        }
                        else
                        {
                            run = asynchronous ? () => stream.FinishAsync().GetAwaiter().GetResult() : () => stream.Finish();
                        }
                        if (step.TryGetProperty("status", out JsonElement status))
                        {
                            Assert.Equal(status.GetString(), SirenLibrary.Name(Assert.ThrowsAny<SirenException>(run).Status));
                        }
                        else
                        {
                            Expect(vector, step.GetProperty("expect"), run());
                        }
                    }
                }
                foreach (SirenStream stream in streams.Values)
                {
                    stream.Dispose();
                }
            }
            Assert.True(steps > 150, $"{steps} steps");
        }

        private static SirenGuard Open(JsonElement open)
        {
            string model = open.GetProperty("model").GetString()!;
            string path = Path.Combine(Source.Root, model);
            return SirenGuard.Open(Directory.Exists(path) ? path : model, new SirenOpenOptions
            {
                Threads = 2,
                Dtype = Name(open, "dtype"),
                Device = Name(open, "device"),
                Offline = open.TryGetProperty("offline", out JsonElement offline) && offline.GetBoolean(),
                MaxTextBytes = Whole(open, "max_text_bytes"),
                MaxBatch = Whole(open, "max_batch"),
            });
        }

        private SirenGuard Guard(JsonElement vector) => guards[Name(vector, "guard") ?? "demo"];

        private static string Id(JsonElement vector) => Name(vector, "id") ?? "batch";

        private static string? Name(JsonElement of, string name) => of.TryGetProperty(name, out JsonElement value) ? value.GetString() : null;

        private static long Whole(JsonElement of, string name) => of.TryGetProperty(name, out JsonElement value) ? value.GetInt64() : 0;

        /// <summary>A text in one of the forms that the vectors' README tells, as bytes.</summary>
        private static byte[]? Text(JsonElement of, string name)
        {
            if (!of.TryGetProperty(name, out JsonElement value))
            {
                return null;
            }
            if (value.ValueKind == JsonValueKind.String)
            {
                return Encoding.UTF8.GetBytes(value.GetString()!);
            }
            if (value.TryGetProperty("base64", out JsonElement bytes))
            {
                return Convert.FromBase64String(bytes.GetString()!);
            }
            var text = new StringBuilder();
            for (int i = value.GetProperty("times").GetInt32(); i > 0; i--)
            {
                text.Append(value.GetProperty("repeat").GetString());
            }
            return Encoding.UTF8.GetBytes(text.Append(Name(value, "then")).ToString());
        }

        private static SirenInput Input(JsonElement vector)
        {
            SirenText text = Text(vector, "text"), prompt = Text(vector, "prompt"), response = Text(vector, "response");
            // What the public ways cannot say, a text with a prompt, is what the library refuses.
            return text.IsAbsent ? SirenInput.Exchange(prompt, response)
                : prompt.IsAbsent && response.IsAbsent ? new SirenInput(text) : new SirenInput(text, prompt, response);
        }

        private static double? Threshold(JsonElement options) =>
            options.TryGetProperty("threshold", out JsonElement threshold) ? threshold.GetDouble() : null;

        private static SirenWindows? Windows(JsonElement options) => options.TryGetProperty("windows", out JsonElement windows)
            ? new SirenWindows { Tokens = Whole(windows, "tokens"), Stride = Whole(windows, "stride") } : null;

        private static SirenScoreOptions? Options(JsonElement vector) => vector.TryGetProperty("options", out JsonElement given)
            ? new SirenScoreOptions { Threshold = Threshold(given), Windows = Windows(given) } : null;

        private static void Fails(JsonElement vector, Func<object?> call) => FailsIn(vector, Assert.ThrowsAny<SirenException>(call));

        private static void FailsIn(JsonElement vector, SirenException failure)
        {
            string status = vector.GetProperty("status").GetString()!;
            Assert.True(SirenLibrary.Name(failure.Status) == status, $"{Id(vector)}: {failure.Status}, expected {status}");
            Assert.StartsWith(status + ": ", failure.Message);
        }

        private void Expect(JsonElement vector, SirenResult result)
        {
            JsonElement e = vector.GetProperty("expect");
            Expect(vector, e, result.Score, result.Threshold, result.IsHarmful, result.Tokens, result.IsTruncated);
            Assert.Equal(Whole(e, "windows"), result.Window?.Count ?? 0);
            Assert.Equal(Whole(e, "window_index"), result.Window?.Index ?? 0);
            Assert.Equal(Whole(e, "window_start"), result.Window?.Start ?? 0);
            Assert.Equal(Whole(e, "window_end"), result.Window?.End ?? 0);
        }

        private void Expect(JsonElement vector, JsonElement e, SirenPushResult result)
        {
            Expect(vector, e, result.Score, result.Threshold, result.IsHarmful, result.Tokens, result.IsTruncated);
            Assert.Equal(Whole(e, "cleared_bytes"), result.ClearedBytes);
            JsonElement crossing = e.GetProperty("crossing");
            Assert.Equal(crossing.ValueKind == JsonValueKind.Null, result.Crossing == null);
            if (result.Crossing != null)
            {
                Assert.Equal(Whole(crossing, "token"), result.Crossing.Token);
                Assert.Equal(Whole(crossing, "byte"), result.Crossing.Byte);
            }
        }

        private void Expect(JsonElement vector, JsonElement e, double score, double threshold, bool harmful, long tokens, bool truncated) =>
            Assert.True(
                Math.Abs(score - e.GetProperty("score").GetDouble()) <= tolerance && threshold == e.GetProperty("threshold").GetDouble()
                    && harmful == e.GetProperty("is_harmful").GetBoolean() && tokens == Whole(e, "tokens")
                    && truncated == e.GetProperty("truncated").GetBoolean(),
                $"{Id(vector)}: {score} {threshold} {harmful} {tokens} {truncated}, expected {e}");
    }
}
