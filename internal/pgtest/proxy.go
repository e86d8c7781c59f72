package pgtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Proxy stands between clients and a PostgreSQL server, and treats what passes
// as bad networks do. It begins by passing everything on, ends with its test,
// and is safe for concurrent use. It knows a COMMIT in the simple and in the
// extended protocol, if nothing else stands in its query, and no TLS.
type Proxy struct {
	dsn             string // of the proxy
	network, server string // address of the server
	listener        net.Listener
	ctx             context.Context // ends with the test
	cancel          context.CancelFunc
	wg              sync.WaitGroup

	mu      sync.Mutex // guards all below; held for moments, and never during I/O
	mode    proxyMode
	delay   time.Duration
	commits int
	conns   map[*proxyConn]bool
}

type proxyMode int

const (
	passThrough proxyMode = iota
	dropAfterCommit
	holdCommit
	blackHole
)

// NewProxy starts a proxy before the server of a DSN that DSN or Server.DSN
// returned. The Server may stop and start again behind it.
func NewProxy(t testing.TB, dsn string) *Proxy {
	t.Helper()
	config, err := pgconn.ParseConfig(dsn)
	if err != nil {
		t.Fatalf("proxy: %v", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("proxy: %v", err)
	}
	port := strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
	p := &Proxy{
		dsn:      withParams(dsn, "host", "127.0.0.1", "port", port, "sslmode", "disable"),
		listener: listener,
		conns:    make(map[*proxyConn]bool),
	}
	p.network, p.server = pgconn.NetworkAddress(config.Host, config.Port)
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.wg.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// DSN returns the DSN that leads to the server by way of the proxy.
func (p *Proxy) DSN() string { return p.dsn }

// Pass lets everything pass again. Connections of which a black hole swallowed
// something are closed on both sides.
func (p *Proxy) Pass() { p.set(passThrough, 0) }

// DropAfterCommit sends each COMMIT to the server, and when it has been done
// closes the connection to the client instead of passing the reply on.
func (p *Proxy) DropAfterCommit() { p.set(dropAfterCommit, 0) }

// HoldCommit closes the connection to each client that sends a COMMIT, and
// sends the COMMIT to the server only after the delay. Until then the server
// has the transaction open. What is held when the test ends is never sent.
func (p *Proxy) HoldCommit(delay time.Duration) { p.set(holdCommit, delay) }

// BlackHole accepts connections, keeps those that are there, and swallows what
// either side sends, closing included: clients wait, and the server keeps
// their transactions open.
func (p *Proxy) BlackHole() { p.set(blackHole, 0) }

// Forget is what a firewall does that drops the state of connections which it takes
// for idle: what is sent on those that are there gets nowhere, closing included,
// while new ones pass. The server keeps their transactions open.
func (p *Proxy) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.swallowed = true
	}
}

// Commits returns how many COMMITs reached the proxy, those that it is still
// holding included, but not those that a black hole swallowed.
func (p *Proxy) Commits() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.commits
}

func (p *Proxy) set(mode proxyMode, delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode, p.delay = mode, delay
	if mode == blackHole {
		return
	}
	for c := range p.conns {
		if c.swallowed {
			c.close()
			delete(p.conns, c)
		}
	}
}

func (p *Proxy) close() {
	p.cancel()
	p.listener.Close()
	p.mu.Lock()
	for c := range p.conns {
		c.close()
	}
	p.conns = nil
	p.mu.Unlock()
	p.wg.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(client) })
	}
}

func (p *Proxy) serve(client net.Conn) {
	server, err := new(net.Dialer).DialContext(p.ctx, p.network, p.server)
	if err != nil {
		client.Close()
		return
	}
	c := &proxyConn{client: client, server: server}
	p.mu.Lock()
	if p.conns == nil {
		c.close()
	} else {
		p.conns[c] = true
	}
	p.mu.Unlock()

	p.wg.Go(func() { p.forwardReplies(c) })
	p.forwardRequests(c)
}

// forwardRequests reads from the client message by message.
func (p *Proxy) forwardRequests(c *proxyConn) {
	in, out := bufio.NewReader(c.client), bufio.NewWriter(c.server)
	startup := true
	var statements commitScanner
	for {
		message, err := readMessage(in, startup)
		if err != nil {
			p.ended(c)
			return
		}
		isCommit := !startup && statements.commits(message[0], message[5:])
		startup = false
		if p.swallows(c) {
			continue
		}
		if isCommit && p.detach(c, out, message) {
			return
		}
		out.Write(message)
		if in.Buffered() == 0 && out.Flush() != nil {
			p.ended(c)
			return
		}
	}
}

// detach treats a COMMIT as the mode demands, and reports whether that was the
// end of the connection.
func (p *Proxy) detach(c *proxyConn, out *bufio.Writer, commit []byte) bool {
	p.mu.Lock()
	p.commits++
	mode, delay := p.mode, p.delay
	c.muted = mode == dropAfterCommit || mode == holdCommit
	p.mu.Unlock()

	switch mode {
	case dropAfterCommit:
		// The client is kept until the server is through: on a connection that
		// breaks earlier, pgx sends a cancel request, which may undo the COMMIT.
	case holdCommit:
		out.Flush()
		c.client.Close()
		select {
		case <-time.After(delay):
		case <-p.ctx.Done():
			return true
		}
	default:
		return false
	}
	out.Write(commit)
	out.Write([]byte{'X', 0, 0, 0, 4}) // terminate: forwardReplies sees the end, and closes both sides
	out.Flush()
	return true
}

// forwardReplies reads from the server until it closes.
func (p *Proxy) forwardReplies(c *proxyConn) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := c.server.Read(buffer)
		if n > 0 && !p.swallows(c) && !p.isMuted(c) {
			c.client.Write(buffer[:n]) // if the client is gone, forwardRequests knows
		}
		if err != nil {
			p.ended(c)
			return
		}
	}
}

// swallows reports whether the connection has fallen into the black hole, now
// or before: with a piece missing, there is no going on.
func (p *Proxy) swallows(c *proxyConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.swallowed = c.swallowed || p.mode == blackHole && !c.muted
	return c.swallowed
}

func (p *Proxy) isMuted(c *proxyConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return c.muted
}

// ended closes a connection that one side has closed, unless a black hole
// keeps that from the other side.
func (p *Proxy) ended(c *proxyConn) {
	if p.swallows(c) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c.close()
	delete(p.conns, c)
}

// proxyConn is a client's connection and the one to the server behind it.
type proxyConn struct {
	client, server net.Conn
	swallowed      bool // guarded by Proxy.mu; the black hole has some of it
	muted          bool // guarded by Proxy.mu; the client hears no more
}

// close may be called more than once.
func (c *proxyConn) close() {
	c.client.Close()
	c.server.Close()
}

// readMessage returns one whole message of the frontend: a type, unless it is
// the first, a length that counts itself, and the body.
// See https://www.postgresql.org/docs/current/protocol-message-formats.html.
func readMessage(in *bufio.Reader, startup bool) ([]byte, error) {
	header := 5
	if startup {
		header = 4
	}
	message := make([]byte, header)
	if _, err := io.ReadFull(in, message); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(message[header-4:])
	if length < 4 || length > 1<<30 {
		return nil, errors.New("not the PostgreSQL protocol")
	}
	message = append(message, make([]byte, length-4)...)
	_, err := io.ReadFull(in, message[header:])
	return message, err
}

// commitScanner follows a connection's statements and portals to tell which
// message makes the server commit. Its zero value works.
type commitScanner struct {
	statements, portals map[string]bool // by name; whether it is a COMMIT
}

func (s *commitScanner) commits(kind byte, body []byte) bool {
	first, rest, _ := bytes.Cut(body, []byte{0})
	second, _, _ := bytes.Cut(rest, []byte{0})
	switch kind {
	case 'Q': // query
		return isCommit(first)
	case 'P': // parse: statement, query
		set(&s.statements, first, isCommit(second))
	case 'B': // bind: portal, statement
		set(&s.portals, first, s.statements[string(second)])
	case 'E': // execute: portal; a COMMIT does not wait for the sync
		return s.portals[string(first)]
	}
	return false
}

func set(m *map[string]bool, name []byte, value bool) {
	if *m == nil {
		*m = make(map[string]bool)
	}
	(*m)[string(name)] = value
}

func isCommit(query []byte) bool {
	return strings.EqualFold(strings.Trim(string(query), " \t\r\n;"), "commit")
}
