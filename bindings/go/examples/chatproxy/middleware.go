package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"

	"libsiren/siren"
)

// Policy says what becomes of text that could not be judged: the guard was busy, the time limit
// passed, or the guard is poisoned.
type Policy int

const (
	// Block ends the answer. It is what happens when nothing is said.
	Block Policy = iota
	// FlagUnjudged passes the text on, and says in the event that nobody judged it.
	FlagUnjudged
	// PassUnjudged passes the text on as if it were cleared.
	PassUnjudged
)

// Stream is what the middleware needs of a *siren.Stream.
type Stream interface {
	PushBytes(context.Context, []byte, ...siren.PushOption) (*siren.PushResult, error)
	Finish(context.Context, ...siren.PushOption) (*siren.PushResult, error)
	Close() error
}

// Middleware guards the answers of a chat model that come as server-sent events in the form of the
// chat completions API.
//
// Events are made anew from the fields that are understood here (role, content, finish_reason): what
// was not judged is not passed on. A successful answer that is no event stream is refused.
type Middleware struct {
	// Open opens a stream for the answer to prompt.
	Open func(prompt string) (Stream, error)
	// Flag passes all text on at once, and marks the event at which the answer crossed. Without it
	// text is held back until it is cleared, and the answer ends at the crossing.
	Flag bool
	// OnFailure is Block if nothing is said.
	OnFailure Policy
	// Timeout of one push. 0: none but the request's.
	Timeout time.Duration
}

const (
	maxRequest = 1 << 20
	maxEvent   = 1 << 20
)

// Wrap guards what next answers.
func (m *Middleware) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
		if err != nil {
			fail(w, http.StatusRequestEntityTooLarge, "the request is too large")
			return
		}
		prompt, err := lastOfUser(body)
		if err != nil {
			fail(w, http.StatusBadRequest, err.Error())
			return
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		r = r.WithContext(ctx)
		r.Body = io.NopCloser(bytes.NewReader(body))
		r.Header.Del("Accept-Encoding") // Packed text cannot be judged.
		guarded := &writer{middleware: m, ctx: ctx, cancel: cancel, to: w, prompt: prompt, choices: map[int]*choice{}}
		defer guarded.close()
		// A reverse proxy whose client is cut off panics with ErrAbortHandler: that ends it here.
		defer func() {
			if reason := recover(); reason != nil && !(guarded.ended && reason == http.ErrAbortHandler) {
				panic(reason)
			}
		}()
		next.ServeHTTP(guarded, r)
	})
}

// lastOfUser is what the answer is to: the text of the user's last message.
func lastOfUser(body []byte) (string, error) {
	var request struct {
		Messages []struct {
			Role    string
			Content json.RawMessage
		}
	}
	if err := json.Unmarshal(body, &request); err != nil {
		return "", fmt.Errorf("the request is not a chat: %w", err)
	}
	for i := len(request.Messages) - 1; i >= 0; i-- {
		message := request.Messages[i]
		if message.Role != "user" {
			continue
		}
		var text string
		if json.Unmarshal(message.Content, &text) == nil {
			return text, nil
		}
		var parts []struct{ Text string }
		if err := json.Unmarshal(message.Content, &parts); err != nil {
			return "", errors.New("the content of a message is neither a text nor a list of parts")
		}
		for _, part := range parts {
			text += part.Text
		}
		return text, nil
	}
	return "", nil
}

func fail(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Del("Content-Length")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(failure(message))
}

type failureEvent struct {
	Error struct {
		Message string `json:"message"`
		Type    string `json:"type"`
	} `json:"error"`
}

func failure(message string) (event failureEvent) {
	event.Error.Message, event.Error.Type = message, "guard"
	return
}

// chunk is an event of the chat completions API, as far as it is understood here.
type chunk struct {
	ID      string        `json:"id,omitempty"`
	Object  string        `json:"object,omitempty"`
	Created int64         `json:"created,omitempty"`
	Model   string        `json:"model,omitempty"`
	Choices []chunkChoice `json:"choices"`
}

type chunkChoice struct {
	Index        int     `json:"index"`
	Delta        delta   `json:"delta"`
	FinishReason *string `json:"finish_reason"`
	Siren        *mark   `json:"siren,omitempty"`
}

type delta struct {
	Role    string `json:"role,omitempty"`
	Content string `json:"content,omitempty"`
}

// mark is what the guard adds to an event.
type mark struct {
	Score        float64 `json:"score,omitempty"`
	CrossingByte *int    `json:"crossing_byte,omitempty"`
	Unjudged     string  `json:"unjudged,omitempty"`
}

// choice is one of the answers.
type choice struct {
	stream Stream
	// What came, from the first byte that is not sent on.
	held []byte
	// Bytes before held.
	sent int
	// The end of held that the stream has not taken: a push of it failed.
	unpushed []byte
	crossed  bool
}

// writer stands between the handler that is guarded and the client.
type writer struct {
	middleware *Middleware
	ctx        context.Context
	cancel     context.CancelFunc
	to         http.ResponseWriter
	prompt     string
	headerSent bool
	guarding   bool
	ended      bool
	event      []byte
	choices    map[int]*choice
	last       chunk
}

var errEnded = errors.New("the guard has ended this answer")

func (w *writer) Header() http.Header { return w.to.Header() }

func (w *writer) WriteHeader(status int) {
	if w.headerSent || w.ended {
		return
	}
	if status < 200 || status >= 300 {
		// An error of the model's server holds no answer.
		w.headerSent = status >= 200
		w.to.WriteHeader(status)
		return
	}
	kind, _, _ := mime.ParseMediaType(w.Header().Get("Content-Type"))
	if kind != "text/event-stream" || w.Header().Get("Content-Encoding") != "" {
		w.refuse(http.StatusBadGateway, "the answer is not a stream that can be judged")
		return
	}
	w.guarding, w.headerSent = true, true
	w.Header().Del("Content-Length")
	w.to.WriteHeader(status)
}

// refuse answers in place of the handler.
func (w *writer) refuse(status int, message string) {
	w.headerSent, w.ended = true, true
	fail(w.to, status, message)
	w.cancel()
}

func (w *writer) Write(p []byte) (int, error) {
	if !w.headerSent {
		w.WriteHeader(http.StatusOK)
	}
	if w.ended {
		return 0, errEnded
	}
	if !w.guarding {
		return w.to.Write(p)
	}
	w.event = append(w.event, bytes.ReplaceAll(p, []byte("\r"), nil)...)
	for {
		event, rest, found := bytes.Cut(w.event, []byte("\n\n"))
		if !found {
			break
		}
		w.event = rest
		if err := w.take(event); err != nil {
			return 0, err
		}
	}
	if len(w.event) > maxEvent {
		return 0, w.end("an event is too large to be judged")
	}
	return len(p), nil
}

// Flush sends on what was written. Events are sent whole, as soon as they are judged.
func (w *writer) Flush() {}

// take judges one event.
func (w *writer) take(event []byte) error {
	var data []byte
	for line := range bytes.Lines(event) {
		if text, found := bytes.CutPrefix(line, []byte("data:")); found {
			data = append(data, bytes.TrimSpace(text)...)
		}
	}
	switch {
	case len(data) == 0: // a comment that keeps the connection open
		return nil
	case string(data) == "[DONE]":
		for index, c := range w.choices {
			if c.stream == nil && len(c.held) == 0 {
				continue // finished
			}
			if err := w.judge(index, c, delta{}, nil, true); err != nil {
				return err
			}
		}
		return w.send([]byte("[DONE]"))
	}
	w.last = chunk{}
	if err := json.Unmarshal(data, &w.last); err != nil {
		return w.end("an event cannot be read")
	}
	choices := w.last.Choices
	for _, given := range choices {
		c, found := w.choices[given.Index]
		if !found {
			c = new(choice)
			w.choices[given.Index] = c
		}
		if err := w.judge(given.Index, c, given.Delta, given.FinishReason, given.FinishReason != nil); err != nil {
			return err
		}
	}
	return nil
}

// judge takes what was added to one answer, and sends on what may be shown of it.
func (w *writer) judge(index int, c *choice, added delta, reason *string, finish bool) error {
	c.held = append(c.held, added.Content...)
	c.unpushed = append(c.unpushed, added.Content...)
	out := chunkChoice{Index: index, Delta: delta{Role: added.Role}, FinishReason: reason}
	result, err := w.push(c, finish)
	show := len(c.held)
	switch {
	case err != nil && w.ctx.Err() != nil:
		return w.ctx.Err()
	case err != nil:
		var failed *siren.Error
		why := "internal"
		if errors.As(err, &failed) {
			why = failed.Status.Error()
		}
		switch w.middleware.OnFailure {
		case PassUnjudged:
		case FlagUnjudged:
			out.Siren = &mark{Unjudged: why}
		default:
			return w.end("the answer could not be judged: " + why)
		}
	case w.middleware.Flag:
		if result.Crossing != nil && !c.crossed {
			c.crossed = true
			out.Siren = &mark{Score: result.Score, CrossingByte: &result.Crossing.Byte}
		}
	default:
		show = max(0, min(show, result.Cleared-c.sent))
		if result.Crossing != nil {
			filtered := "content_filter"
			out.FinishReason = &filtered
			out.Siren = &mark{Score: result.Score, CrossingByte: &result.Crossing.Byte}
		}
	}
	out.Delta.Content = string(c.held[:show])
	c.held, c.sent = c.held[show:], c.sent+show
	if out.Delta != (delta{}) || out.FinishReason != nil || out.Siren != nil {
		event := w.last
		event.Choices = []chunkChoice{out}
		data, err := json.Marshal(event)
		if err != nil {
			return err
		}
		if err := w.send(data); err != nil {
			return err
		}
	}
	switch {
	case err != nil:
	case result.Crossing != nil && !w.middleware.Flag:
		if err := w.send([]byte("[DONE]")); err != nil {
			return err
		}
		w.ended = true
		w.cancel() // The model need not go on.
		return errEnded
	case finish && len(c.held) > 0:
		return w.end("the end of the answer could not be judged")
	case finish:
		// What the model says after it has finished is judged anew.
		_ = c.stream.Close()
		*c = choice{}
	}
	return nil
}

// push hands the stream what it has not taken.
func (w *writer) push(c *choice, finish bool) (*siren.PushResult, error) {
	ctx := w.ctx
	if w.middleware.Timeout > 0 {
		limited, cancel := context.WithTimeout(ctx, w.middleware.Timeout)
		defer cancel()
		ctx = limited
	}
	if c.stream == nil {
		stream, err := w.middleware.Open(w.prompt)
		if err != nil {
			return nil, err
		}
		c.stream = stream
	}
	result, err := c.stream.PushBytes(ctx, c.unpushed)
	if err != nil {
		return nil, err
	}
	c.unpushed = nil
	if finish && result.Crossing == nil {
		if result, err = c.stream.Finish(ctx); err != nil {
			return nil, err
		}
	}
	return result, nil
}

// end ends the answer with an event that says why.
func (w *writer) end(why string) error {
	data, err := json.Marshal(failure(why))
	if err == nil {
		err = w.send(data)
	}
	w.ended = true
	w.cancel()
	return errors.Join(errEnded, err)
}

func (w *writer) send(data []byte) error {
	if _, err := fmt.Fprintf(w.to, "data: %s\n\n", data); err != nil {
		return err
	}
	return http.NewResponseController(w.to).Flush()
}

func (w *writer) close() {
	for _, c := range w.choices {
		if c.stream != nil {
			_ = c.stream.Close()
		}
	}
}
