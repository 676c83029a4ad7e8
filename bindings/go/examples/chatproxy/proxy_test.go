package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"libsiren/siren"
)

// The word "bomb" crosses; vectors.json has the same text, from the reference: from byte 63 on nothing
// may be shown.
const (
	harmless = "Thank you for the wonderful evening. It was a pleasure to meet all of you."
	harmful  = "Thank you for the wonderful evening. Now, how can I make a pipe bomb at home? Take a pipe."
	crossing = 68
	cleared  = 63
)

func open(t *testing.T) *siren.Guard {
	t.Helper()
	demo, err := filepath.Abs("../../../../models/demo")
	if err != nil {
		t.Fatal(err)
	}
	guard, err := siren.Open(t.Context(), demo, siren.WithThreads(2))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { guard.Close() })
	return guard
}

// model is a chat model's server that says answer, a word an event, and tells when a client left
// before the end.
func model(t *testing.T, answer string, left *atomic.Int32) *httptest.Server {
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		say := func(data string) bool {
			_, err := io.WriteString(w, "data: "+data+"\r\n\r\n")
			w.(http.Flusher).Flush()
			return err == nil && r.Context().Err() == nil
		}
		say(`{"id":"1","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}`)
		for _, word := range regexp.MustCompile(` ?\S+`).FindAllString(answer, -1) {
			text, _ := json.Marshal(word)
			if !say(`{"id":"1","choices":[{"index":0,"delta":{"content":` + string(text) + `},"finish_reason":null}]}`) {
				left.Add(1)
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
		say(`{"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`)
		say("[DONE]")
	})
}

func serve(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server
}

// guarded is a proxy in front of upstream.
func guarded(t *testing.T, middleware *Middleware, upstream *httptest.Server) *httptest.Server {
	address, err := url.Parse(upstream.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(address) }}
	return serve(t, middleware.Wrap(proxy).ServeHTTP)
}

type answer struct {
	status           int
	raw, text        string
	reason, unjudged string
	crossing         *int
	failed           bool
	done             bool
}

// ask is a client.
func ask(t *testing.T, server *httptest.Server) (a answer) {
	t.Helper()
	body := `{"stream":true,"messages":[{"role":"system","content":"You are nice."}]}`
	response, err := http.Post(server.URL+"/v1/chat/completions", "application/json", strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		t.Error(err)
	}
	a.status, a.raw = response.StatusCode, string(raw)
	for _, event := range strings.Split(a.raw, "\n\n") {
		data, found := strings.CutPrefix(event, "data: ")
		if !found {
			continue
		}
		if data == "[DONE]" {
			a.done = true
			continue
		}
		var parsed struct {
			chunk
			Error *struct{ Message string }
		}
		if err := json.Unmarshal([]byte(data), &parsed); err != nil {
			t.Errorf("%s: %v", data, err)
		}
		a.failed = a.failed || parsed.Error != nil
		for _, choice := range parsed.Choices {
			a.text += choice.Delta.Content
			if choice.FinishReason != nil {
				a.reason = *choice.FinishReason
			}
			if choice.Siren != nil {
				if choice.Siren.CrossingByte != nil {
					a.crossing = choice.Siren.CrossingByte
				}
				a.unjudged = choice.Siren.Unjudged
			}
		}
	}
	return
}

func TestAClientSeesNothingPastTheCrossing(t *testing.T) {
	var left atomic.Int32
	long := harmful + strings.Repeat(" and so on", 500)
	server := guarded(t, &Middleware{Open: NewCurrent(open(t)).Open}, model(t, long, &left))
	a := ask(t, server)
	if !strings.HasPrefix(harmful[:cleared], a.text) || len(a.text) < 40 {
		t.Errorf("%q was shown", a.text)
	}
	if strings.Contains(a.raw, "bomb") || a.reason != "content_filter" || !a.done || a.crossing == nil {
		t.Errorf("the client got %s", a.raw)
	}
	for range 500 {
		if left.Load() > 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("the model goes on")
}

func TestAHarmlessAnswerArrivesWhole(t *testing.T) {
	var left atomic.Int32
	long := strings.TrimSpace(strings.Repeat(harmless+" ", 35)) // past the demo guard's max_length
	for _, text := range []string{harmless, long, "", "Thank you for the wonderful soirée"} {
		a := ask(t, guarded(t, &Middleware{Open: NewCurrent(open(t)).Open, Flag: text == long}, model(t, text, &left)))
		if a.text != text || a.reason != "stop" || !a.done || left.Load() != 0 {
			t.Errorf("%q of %q arrived, %s", a.text, text, a.reason)
		}
	}
}

func TestThePromptIsWhatTheUserSaidLast(t *testing.T) {
	for body, expected := range map[string]string{
		`{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}]}`: "c",
		`{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]}`:              "ab",
		`{"messages":[{"role":"system","content":"a"}]}`:                                                                "",
	} {
		if prompt, err := lastOfUser([]byte(body)); err != nil || prompt != expected {
			t.Errorf("%s: %q, %v", body, prompt, err)
		}
	}
	for _, body := range []string{`[`, `{"messages":[{"role":"user","content":7}]}`} {
		if prompt, err := lastOfUser([]byte(body)); err == nil {
			t.Errorf("%s: %q", body, prompt)
		}
	}
}

func TestFlaggedTextArrivesWithAMark(t *testing.T) {
	var left atomic.Int32
	a := ask(t, guarded(t, &Middleware{Open: NewCurrent(open(t)).Open, Flag: true}, model(t, harmful, &left)))
	if a.text != harmful || a.crossing == nil || a.reason != "stop" {
		t.Errorf("%+v", a)
	}
}

// failing is a stream whose pushes fail.
type failing struct{ status siren.Status }

func (f failing) PushBytes(context.Context, []byte, ...siren.PushOption) (*siren.PushResult, error) {
	return nil, &siren.Error{Status: f.status, Message: "planted"}
}
func (f failing) Finish(ctx context.Context, _ ...siren.PushOption) (*siren.PushResult, error) {
	return f.PushBytes(ctx, nil)
}
func (f failing) Close() error { return nil }

func TestWhatCannotBeJudgedIsBlockedIfNothingIsSaid(t *testing.T) {
	var left atomic.Int32
	upstream := model(t, harmful, &left)
	guard := NewCurrent(open(t))
	for name, middleware := range map[string]Middleware{
		"busy":              {Open: func(string) (Stream, error) { return failing{siren.ErrBusy}, nil }},
		"poisoned":          {Open: func(string) (Stream, error) { return failing{siren.ErrPoisoned}, nil }},
		"limit_exceeded":    {Open: func(string) (Stream, error) { return nil, &siren.Error{Status: siren.ErrLimitExceeded} }},
		"deadline_exceeded": {Open: guard.Open, Timeout: time.Nanosecond},
	} {
		blocked := ask(t, guarded(t, &middleware, upstream))
		if blocked.text != "" || !blocked.failed || blocked.done || !strings.Contains(blocked.raw, name) {
			t.Errorf("%s: %+v", name, blocked)
		}
		flagged := middleware
		flagged.OnFailure = FlagUnjudged
		if a := ask(t, guarded(t, &flagged, upstream)); a.text != harmful || a.unjudged != name || !a.done {
			t.Errorf("%s: %+v", name, a)
		}
		passed := middleware
		passed.OnFailure = PassUnjudged
		if a := ask(t, guarded(t, &passed, upstream)); a.text != harmful || a.unjudged != "" || !a.done {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

// hiccup fails now and then; what it did not take comes again.
type hiccup struct {
	Stream
	pushes *atomic.Int32
}

func (h hiccup) PushBytes(ctx context.Context, text []byte, options ...siren.PushOption) (*siren.PushResult, error) {
	if h.pushes.Add(1)%2 == 0 {
		return failing{siren.ErrBusy}.PushBytes(ctx, text)
	}
	return h.Stream.PushBytes(ctx, text, options...)
}

func TestTextThatAFailedPushLeftIsJudgedLater(t *testing.T) {
	var left, pushes atomic.Int32
	guard := NewCurrent(open(t))
	openHiccup := func(prompt string) (Stream, error) {
		stream, err := guard.Open(prompt)
		return hiccup{stream, &pushes}, err
	}
	a := ask(t, guarded(t, &Middleware{Open: openHiccup, OnFailure: FlagUnjudged}, model(t, harmful, &left)))
	if a.reason != "content_filter" || a.crossing == nil || *a.crossing != crossing || strings.Contains(a.text, "Take") {
		t.Errorf("%+v", a)
	}
}

func TestWhatIsNoStreamOfTextIsRefused(t *testing.T) {
	current := NewCurrent(open(t))
	for name, handler := range map[string]http.HandlerFunc{
		"json": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"choices":[{"message":{"content":"SECRET"}}]}`)
		},
		"packed": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.Header().Set("Content-Encoding", "br")
			io.WriteString(w, "SECRET")
		},
		"not-json": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, "data: SECRET\n\n")
		},
		"other-fields": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, `data: {"choices":[{"index":0,"delta":{"reasoning_content":"SECRET"}}],"note":"SECRET"}`+"\n\n")
		},
		"without-end": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, `data: {"choices":[{"index":0,"delta":{"content":"SECRET"}}]}`)
		},
	} {
		a := ask(t, guarded(t, &Middleware{Open: current.Open}, serve(t, handler)))
		if strings.Contains(a.raw, "SECRET") || a.text != "" {
			t.Errorf("%s: %s", name, a.raw)
		}
	}
	upstream := serve(t, func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no such model", http.StatusNotFound) })
	if a := ask(t, guarded(t, &Middleware{Open: current.Open}, upstream)); a.status != http.StatusNotFound {
		t.Errorf("%+v", a)
	}
}

func TestAGuardIsReplacedWhileAnswersStream(t *testing.T) {
	var left atomic.Int32
	current := NewCurrent(open(t))
	server := guarded(t, &Middleware{Open: current.Open}, model(t, harmful, &left))
	var wait sync.WaitGroup
	var asked atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	for range 8 {
		wait.Go(func() {
			for ctx.Err() == nil {
				a := ask(t, server)
				if a.reason != "content_filter" || a.failed || strings.Contains(a.raw, "bomb") {
					t.Errorf("%+v", a)
					return
				}
				asked.Add(1)
			}
		})
	}
	for range 5 {
		before := asked.Load()
		for asked.Load() < before+8 && !t.Failed() {
			time.Sleep(time.Millisecond)
		}
		if err := current.Replace(open(t)); err != nil {
			t.Error(err)
		}
	}
	cancel()
	wait.Wait()
	if err := run("", "", "", false, "maybe", 0); err == nil || errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}
