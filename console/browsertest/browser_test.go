// Package browsertest looks at the console as people do: in a browser.
//
// It is a module of its own, so that nobody who imports the console downloads a
// driver of browsers. It needs Chromium or Chrome; where there is none it is skipped,
// or fails with CI=true or SMALLBEN_REQUIRE_BROWSER=1 in the environment.
package browsertest

import (
	"bytes"
	"compress/gzip"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/nbena/smallben/console/browsertest/jobs"
	"github.com/stretchr/testify/require"
)

// patience is how long a page may take to show what is expected of it: the machine
// may be busy.
const patience = 45 * time.Second

// browser is the one of this process. It starts with the first test that wants it.
var browser struct {
	once   sync.Once
	ctx    context.Context
	cancel func()
	err    error
}

func startBrowser() {
	path := os.Getenv("SMALLBEN_BROWSER")
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"} {
		if path == "" {
			path, _ = exec.LookPath(name)
		}
	}
	if path == "" {
		browser.err = fmt.Errorf("there is neither Chromium nor Chrome: sh scripts/setup.sh chromium installs it on Debian and Ubuntu, and SMALLBEN_BROWSER names one that is elsewhere")
		return
	}
	data, err := os.MkdirTemp("", "smallben-browser")
	if err != nil {
		browser.err = err
		return
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.UserDataDir(data), chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("lang", "en-GB"))
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox) // root has none
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, cancel := chromedp.NewContext(allocator)
	browser.ctx = ctx
	browser.cancel = func() {
		cancel()
		stop()
		_ = os.RemoveAll(data)
	}
	if browser.err = chromedp.Do(ctx); browser.err != nil {
		browser.cancel()
	}
}

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		runChild()
		return
	}
	jobs.Register()
	code := m.Run()
	if browser.ctx != nil {
		browser.cancel()
	}
	os.Exit(code)
}

// look says how a tab looks at pages.
type look struct {
	width, height int64
	scheme        string // light or dark
	noScript      bool
}

var (
	desk  = look{1280, 900, "light", false}
	night = look{1280, 900, "dark", false}
	phone = look{390, 844, "light", false}
)

// tab is a tab of the browser. What goes wrong in it fails the test at its end.
type tab struct {
	t    *testing.T
	ctx  context.Context
	base string

	mu       sync.Mutex
	problems []string
}

func newTab(t *testing.T, base string, as look) *tab {
	t.Helper()
	browser.once.Do(startBrowser)
	if browser.err != nil {
		if os.Getenv("CI") == "true" || os.Getenv("SMALLBEN_REQUIRE_BROWSER") == "1" {
			t.Fatal(browser.err)
		}
		t.Skip(browser.err)
	}
	ctx, cancel := chromedp.NewContext(browser.ctx)
	t.Cleanup(cancel)
	b := &tab{t: t, ctx: ctx, base: base}
	host, err := url.Parse(base)
	require.NoError(t, err)
	require.NoError(t, chromedp.Listen(ctx, func(event any) { b.notice(host.Host, event) }))
	b.do(chromedp.EmulateViewport(as.width, as.height))
	features := []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: as.scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}
	_, err = chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: features})
	require.NoError(t, err)
	if as.noScript {
		_, err = chromedp.Call(ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
		require.NoError(t, err)
	}
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, problem := range b.problems {
			t.Error(problem)
		}
	})
	return b
}

// notice hears of errors of scripts, of what the policy of the page forbids, and of
// requests to other hosts; and it answers yes to what a page asks.
func (b *tab) notice(host string, event any) {
	var problem string
	switch event := event.(type) {
	case *runtime.EventExceptionThrown:
		problem = "an exception: " + event.ExceptionDetails.Text
	case *cdplog.EventEntryAdded:
		if event.Entry.Level == "error" && event.Entry.Source != "network" {
			problem = "the browser logs: " + event.Entry.Text
		}
	case *network.EventRequestWillBeSent:
		if to, err := url.Parse(event.Request.URL); err != nil || to.Host != host && to.Scheme != "data" && to.Scheme != "about" {
			problem = "a request to " + event.Request.URL
		}
	case *cdppage.EventJavascriptDialogOpening:
		go func() {
			_, _ = chromedp.Call(b.ctx, cdppage.HandleJavaScriptDialog, cdppage.HandleJavaScriptDialogParams{Accept: true})
		}()
	}
	if problem != "" {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.problems = append(b.problems, problem)
	}
}

func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	require.NoError(b.t, chromedp.Do(ctx, steps...))
}

// eval evaluates an expression in the page.
func eval[T any](b *tab, expression string) (T, error) {
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
}

func (b *tab) open(path string) {
	b.t.Helper()
	b.do(chromedp.Navigate(b.base + path))
}

func (b *tab) text() string {
	text, err := eval[string](b, "document.body ? document.body.innerText : ''")
	if err != nil {
		return "" // between two pages
	}
	return text
}

// sees waits until the page says something.
func (b *tab) sees(texts ...string) {
	b.t.Helper()
	for _, text := range texts {
		b.until("it does not say "+text, func() bool { return strings.Contains(b.text(), text) })
	}
}

// misses waits until the page does not say something.
func (b *tab) misses(text string) {
	b.t.Helper()
	b.until("it still says "+text, func() bool { s := b.text(); return s != "" && !strings.Contains(s, text) })
}

func (b *tab) until(what string, condition func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(30 * time.Millisecond) {
		if time.Now().After(deadline) {
			at, _ := eval[string](b, "location.href")
			b.t.Fatalf("%s: %s\n%s", at, what, b.text())
		}
	}
}

// click clicks on the first element of a CSS selector, with the mouse.
func (b *tab) click(selector string) {
	b.t.Helper()
	b.do(chromedp.WaitVisible(chromedp.CSS(selector)), chromedp.Click(chromedp.CSS(selector)))
}

// press clicks on the button or the link of a text, and waits for the page that it
// leads to.
func (b *tab) press(text string) {
	b.t.Helper()
	quoted, err := json.Marshal(text)
	require.NoError(b.t, err)
	b.leads(func() {
		b.t.Helper()
		b.do(chromedp.Click(chromedp.Search(fmt.Sprintf(`//main//*[(self::button or self::a) and normalize-space(.)=%s]`, quoted))))
	})
}

// leads waits until something has led to another page.
func (b *tab) leads(act func()) {
	b.t.Helper()
	_, err := eval[string](b, "document.documentElement.dataset.left = 'yes'")
	require.NoError(b.t, err)
	act()
	b.until("it leads nowhere", func() bool {
		other, err := eval[bool](b, "document.readyState === 'complete' && !document.documentElement.dataset.left")
		return err == nil && other
	})
}

func (b *tab) fill(selector, value string) {
	b.t.Helper()
	b.do(chromedp.WaitVisible(chromedp.CSS(selector)), chromedp.Clear(chromedp.CSS(selector)))
	if value != "" {
		b.do(chromedp.SetValue(chromedp.CSS(selector), value))
	}
}

func (b *tab) has(selector string) bool {
	found, _ := eval[bool](b, fmt.Sprintf("document.querySelector(%q) !== null", selector))
	return found
}

func (b *tab) screenshot() []byte {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	require.NoError(b.t, err)
	return picture
}

// axe is axe-core 4.14.1 by Deque Systems, under the Mozilla Public License 2.0.
//
//go:embed testdata/axe.min.js.gz
var axe []byte

var axeSource = sync.OnceValue(func() string {
	reader, err := gzip.NewReader(bytes.NewReader(axe))
	if err != nil {
		panic(err)
	}
	source, err := io.ReadAll(reader)
	if err != nil {
		panic(err)
	}
	return string(source)
})

// accessible requires that axe finds nothing wrong with the page.
func (b *tab) accessible(what string) {
	b.t.Helper()
	_, err := eval[bool](b, axeSource()+";true")
	require.NoError(b.t, err)
	found, err := eval[string](b, `axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}).then((r) =>
		r.passes.length < 20 ? "it looked at nothing" : r.violations.map((v) => v.id + ": " + v.help + "\n" + v.nodes.map((n) => "  " + n.html + "\n    " + n.failureSummary.replaceAll("\n", " ")).join("\n")).join("\n"))`)
	require.NoError(b.t, err)
	require.Empty(b.t, found, what)
}
