package siren

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var root = func() string {
	path, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return path
}()

func readJSON(t testing.TB, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// given is a text of the vectors; nil for an absent one.
type given []byte

func (g *given) UnmarshalJSON(data []byte) error {
	var text string
	if json.Unmarshal(data, &text) == nil {
		*g = append(given{}, text...)
		return nil
	}
	var form struct {
		Repeat, Then, Base64 string
		Times                int
	}
	if err := json.Unmarshal(data, &form); err != nil {
		return err
	}
	if form.Base64 != "" {
		bytes, err := base64.StdEncoding.DecodeString(form.Base64)
		*g = bytes
		return err
	}
	*g = given(strings.Repeat(form.Repeat, form.Times) + form.Then)
	return nil
}

type vectorOptions struct {
	Threshold  *float64
	Hysteresis uint64
	Windows    *Windows
}

type vectorCrossing struct{ Token, Byte int }

type expected struct {
	Score, Threshold float64
	Harmful          bool `json:"is_harmful"`
	Tokens           int
	Truncated        bool
	Windows          int
	WindowIndex      int `json:"window_index"`
	WindowStart      int `json:"window_start"`
	WindowEnd        int `json:"window_end"`
	Crossing         *vectorCrossing
	Cleared          int `json:"cleared_bytes"`
}

type openVector struct {
	Model, Dtype, Device string
	Offline              bool
	MaxTextBytes         int64 `json:"max_text_bytes"`
	MaxBatch             int64 `json:"max_batch"`
}

type scoreVector struct {
	ID, Guard, Status      string
	Text, Prompt, Response given
	Options                vectorOptions
	Expect                 expected
}

type streamVector struct {
	ID, Guard, Status string
	Prompt            given
	Options           vectorOptions
	Steps             []struct {
		On, Fork, Status string
		Push             given
		Finish, Reset    bool
		Expect           expected
	}
}

type vectors struct {
	Tolerance float64
	Guards    map[string]openVector
	Opens     []struct {
		ID, Status string
		Open       openVector
	}
	Batches []struct {
		Guard, Status string
		IDs           []string
	}
	Scores  []scoreVector
	Streams []streamVector
}

func readVectors(t testing.TB) *vectors {
	v := new(vectors)
	readJSON(t, "bindings/vectors/vectors.json", v)
	return v
}

// openAs opens a guard of the vectors'. Paths are those of the source tree.
func openAs(t testing.TB, o openVector) (*Guard, error) {
	t.Helper()
	model := o.Model
	if path := filepath.Join(root, model); exists(path) {
		model = path
	}
	options := []Option{WithThreads(2), WithMaxTextBytes(o.MaxTextBytes), WithMaxBatch(o.MaxBatch), WithDtype(o.Dtype), WithDevice(o.Device)}
	if o.Offline {
		options = append(options, Offline())
	}
	guard, err := Open(t.Context(), model, options...)
	if err == nil {
		t.Cleanup(func() { guard.Close() })
	}
	return guard, err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func open(t testing.TB, options ...Option) *Guard {
	t.Helper()
	guard, err := Open(t.Context(), filepath.Join(root, "models/demo"), append([]Option{WithThreads(2)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { guard.Close() })
	return guard
}

func openAll(t *testing.T, v *vectors) map[string]*Guard {
	guards := map[string]*Guard{}
	for name, o := range v.Guards {
		guard, err := openAs(t, o)
		if err != nil {
			t.Fatal(err)
		}
		guards[name] = guard
	}
	guards[""] = guards["demo"]
	return guards
}

func (v *scoreVector) input() Input {
	var in Input
	for _, field := range []struct {
		given given
		part  *part
	}{{v.Text, &in.text}, {v.Prompt, &in.prompt}, {v.Response, &in.response}} {
		if field.given != nil {
			*field.part = partOf([]byte(field.given))
		}
	}
	return in
}

func (o *vectorOptions) score() (options []ScoreOption) {
	if o.Threshold != nil {
		options = append(options, Threshold(*o.Threshold))
	}
	if o.Windows != nil {
		options = append(options, *o.Windows)
	}
	return options
}

func (o *vectorOptions) stream() (options []StreamOption) {
	if o.Threshold != nil {
		options = append(options, Threshold(*o.Threshold))
	}
	if o.Windows != nil {
		options = append(options, *o.Windows)
	}
	return append(options, Hysteresis(o.Hysteresis))
}

func wantStatus(t *testing.T, what, status string, got any, err error) {
	t.Helper()
	var failed *Error
	if !errors.As(err, &failed) || failed.Status.Error() != status || failed.Message == "" {
		t.Errorf("%s: %v, %v; expected %s", what, got, err, status)
	}
}

func near(a, b, tolerance float64) bool { return math.Abs(a-b) <= tolerance }

func (e *expected) window() *Window {
	return windowOf(uint64(e.Windows), uint64(e.WindowIndex), uint64(e.WindowStart), uint64(e.WindowEnd))
}

func same[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }

func TestVectorsOpen(t *testing.T) {
	for _, vector := range readVectors(t).Opens {
		guard, err := openAs(t, vector.Open)
		wantStatus(t, vector.ID, vector.Status, guard, err)
		if guard != nil {
			t.Errorf("%s: a failure with a guard", vector.ID)
		}
	}
}

func TestVectorsScore(t *testing.T) {
	v := readVectors(t)
	guards := openAll(t, v)
	var inputs []Input
	var together []scoreVector
	var single []*Result
	for _, vector := range v.Scores {
		result, err := guards[vector.Guard].Score(t.Context(), vector.input(), vector.Options.score()...)
		if vector.Guard == "" && len(vector.Options.score()) == 0 {
			inputs = append(inputs, vector.input())
			together = append(together, vector)
			single = append(single, result)
		}
		if vector.Status != "" {
			wantStatus(t, vector.ID, vector.Status, result, err)
			if result != nil {
				t.Errorf("%s: a failure with a result", vector.ID)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", vector.ID, err)
			continue
		}
		e := vector.Expect
		if !near(result.Score, e.Score, v.Tolerance) || result.Threshold != e.Threshold || result.Harmful != e.Harmful ||
			result.Tokens != e.Tokens || result.Truncated != e.Truncated || !same(result.Window, e.window()) {
			t.Errorf("%s: %+v, expected %+v", vector.ID, result, e)
		}
	}
	scored, err := guards[""].ScoreBatch(t.Context(), inputs)
	if err != nil || len(scored) != len(inputs) || len(inputs) < 20 {
		t.Fatal(len(scored), len(inputs), err)
	}
	for i, vector := range together {
		if vector.Status != "" {
			wantStatus(t, vector.ID, vector.Status, scored[i].Result, scored[i].Err)
		} else if scored[i].Err != nil || *scored[i].Result != *single[i] {
			t.Errorf("%s: %+v in a batch, %+v alone", vector.ID, scored[i], single[i])
		}
	}
	for _, batch := range v.Batches {
		var inputs []Input
		for _, id := range batch.IDs {
			for i := range v.Scores {
				if v.Scores[i].ID == id {
					inputs = append(inputs, v.Scores[i].input())
				}
			}
		}
		scored, err := guards[batch.Guard].ScoreBatch(t.Context(), inputs)
		wantStatus(t, "batch", batch.Status, scored, err)
	}
}

func TestVectorsStream(t *testing.T) {
	v := readVectors(t)
	guards := openAll(t, v)
	for _, vector := range v.Streams {
		options := vector.Options.stream()
		if vector.Prompt != nil {
			options = append(options, WithPrompt([]byte(vector.Prompt)))
		}
		stream, err := guards[vector.Guard].NewStream(options...)
		if vector.Status != "" {
			wantStatus(t, vector.ID, vector.Status, stream, err)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", vector.ID, err)
			continue
		}
		streams := map[string]*Stream{"": stream}
		for i, step := range vector.Steps {
			on := streams[step.On]
			var result *PushResult
			var err error
			switch {
			case step.Fork != "":
				streams[step.Fork], err = on.Fork()
			case step.Reset:
				err = on.Reset()
			case step.Finish:
				result, err = on.Finish(t.Context())
			default:
				result, err = on.PushBytes(t.Context(), step.Push)
			}
			if step.Status != "" {
				wantStatus(t, vector.ID, step.Status, result, err)
				continue
			}
			if err != nil {
				t.Fatalf("%s, step %d: %v", vector.ID, i, err)
			}
			if result == nil {
				continue
			}
			e := step.Expect
			var crossing *Crossing
			if e.Crossing != nil {
				crossing = (*Crossing)(e.Crossing)
			}
			if !near(result.Score, e.Score, v.Tolerance) || result.Threshold != e.Threshold || result.Harmful != e.Harmful ||
				result.Tokens != e.Tokens || result.Truncated != e.Truncated || !same(result.Crossing, crossing) || result.Cleared != e.Cleared {
				t.Errorf("%s, step %d: %+v %v, expected %+v %v", vector.ID, i, result, result.Crossing, e, e.Crossing)
			}
		}
		for _, stream := range streams {
			if err := stream.Close(); err != nil {
				t.Errorf("%s: %v", vector.ID, err)
			}
		}
	}
}

// The description of the ABI, whose file is made of the library.
func TestABI(t *testing.T) {
	var abi struct {
		ABI      struct{ Major, Minor uint32 }
		Statuses map[string]int32
	}
	readJSON(t, "include/siren-abi.json", &abi)
	if err := load(); err != nil {
		t.Fatal(err)
	}
	if abi.ABI.Major != abiMajor || abi.ABI.Minor != abiMinor || nativeABIVersion() != abiMajor<<16|abiMinor {
		t.Errorf("the ABI is %+v, expected %d.%d", abi.ABI, abiMajor, abiMinor)
	}
	// The names of the constants are held against the same file by coverage.json.
	known := []Status{statusOK, ErrInvalidArgument, ErrInvalidHandle, ErrInvalidUTF8, ErrNotFound, ErrIO, ErrInvalidModel,
		ErrUnsupported, ErrNetwork, ErrUnauthorized, ErrOffline, ErrLimitExceeded, ErrOutOfMemory, ErrBusy, ErrCancelled,
		ErrDeadlineExceeded, ErrPoisoned, ErrForked, ErrNonFinite, ErrInternal, ErrInUse}
	if len(known) != len(abi.Statuses) {
		t.Errorf("%d statuses here, %d in the library", len(known), len(abi.Statuses))
	}
	for _, status := range known {
		if number, ok := abi.Statuses[status.Error()]; !ok || number != int32(status) {
			t.Errorf("%d is %q", status, status.Error())
		}
	}
	if version, err := Version(); err != nil || strings.Count(version, ".") != 2 {
		t.Errorf("%q, %v", version, err)
	}
}
