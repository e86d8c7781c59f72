package main

import (
	"crypto/subtle"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/nbena/smallben"
	"github.com/nbena/smallben/console"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"gorm.io/gorm"
)

// Customer is a row of the service's own. The reminders of a customer are the jobs
// whose GroupID is the customer's ID: there is no second table of them.
type Customer struct {
	ID        int64
	Name      string `gorm:"uniqueIndex"`
	Zone, URL string
}

// In gives a time in the customer's zone, for the page.
func (c Customer) In(t time.Time) string {
	zone, err := time.LoadLocation(c.Zone)
	if err != nil { // no reminder of the customer is accepted
		return t.String()
	}
	return t.In(zone).Format("Mon 2 Jan 15:04:05 MST")
}

// migrate creates what is missing. Replicas that start together take turns.
func migrate(db *gorm.DB) error {
	return db.Transaction(func(tx *gorm.DB) error {
		return errors.Join(tx.Exec("SELECT pg_advisory_xact_lock(20260501)").Error, tx.AutoMigrate(&Customer{}),
			tx.Exec("CREATE SEQUENCE IF NOT EXISTS reminder_ids").Error)
	})
}

//go:embed page.html
var pageText string
var page = template.Must(template.New("page").Parse(pageText))

// service is the HTTP side.
type service struct {
	db       *gorm.DB
	password string
}

// routes ask for a name and a password, except for metrics.
func (s *service) routes() http.Handler {
	guarded := http.NewServeMux()
	guarded.Handle("GET /{$}", handler(s.show))
	guarded.Handle("GET /next", handler(s.next))
	guarded.Handle("POST /reminders", handler(s.add))
	guarded.Handle("POST /customers/{id}/pause", steer(scheduler.PauseJobs))
	guarded.Handle("POST /customers/{id}/resume", steer(scheduler.ResumeJobs))
	guarded.Handle("POST /customers/{id}/run", steer(scheduler.TriggerJobs))
	guarded.Handle("/console/", http.StripPrefix("/console", console.New(scheduler, &console.Options{
		Authorize: func(r *http.Request, _ console.Action) error { return s.authorize(r) },
		User:      func(r *http.Request) string { name, _, _ := r.BasicAuth(); return name },
	})))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.Handler())
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if err := s.authorize(r); err != nil {
			w.Header().Set("WWW-Authenticate", `Basic realm="reminders"`)
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		guarded.ServeHTTP(w, r)
	})
	return http.NewCrossOriginProtection().Handler(mux)
}

func (s *service) authorize(r *http.Request) error {
	name, password, _ := r.BasicAuth()
	if name != "operator" || subtle.ConstantTimeCompare([]byte(password), []byte(s.password)) != 1 {
		return errors.New("a name and a password, please")
	}
	return nil
}

// add adds a reminder, and its customer if the name is new: both are committed, or neither.
func (s *service) add(_ http.ResponseWriter, r *http.Request) error {
	customer := Customer{Name: r.FormValue("name"), Zone: r.FormValue("zone"), URL: r.FormValue("url")}
	err := s.db.WithContext(r.Context()).Transaction(func(tx *gorm.DB) error {
		if err := tx.Where("name = ?", customer.Name).Attrs(customer).FirstOrCreate(&customer).Error; err != nil {
			return err
		}
		var id int64
		if err := tx.Raw("SELECT nextval('reminder_ids')").Scan(&id).Error; err != nil {
			return err
		}
		return scheduler.AddJobsTx(tx, []smallben.Job{{
			ID: id, GroupID: customer.ID, CronExpression: "CRON_TZ=" + customer.Zone + " " + r.FormValue("when"),
			Job: &Reminder{URL: customer.URL}, JobInput: map[string]any{"text": r.FormValue("text")},
			StartPaused: r.FormValue("paused") != "",
		}})
	})
	if err != nil {
		return err
	}
	return scheduler.Committed() // this replica follows at once, the others within a second
}

// steer does one thing to all reminders of a customer.
func steer(change func(*smallben.PauseResumeOptions) error) handler {
	return func(_ http.ResponseWriter, r *http.Request) error {
		id, _ := strconv.ParseInt(r.PathValue("id"), 10, 64) // 0 if it is no number: nobody's id
		return change(&smallben.PauseResumeOptions{GroupIDs: []int64{id}})
	}
}

// next tells when a reminder would come, or why it would be refused.
func (s *service) next(w http.ResponseWriter, r *http.Request) error {
	customer := Customer{Zone: r.FormValue("zone")}
	ticks, err := scheduler.NextRuns("CRON_TZ="+customer.Zone+" "+r.FormValue("when"), 3)
	for _, tick := range ticks {
		fmt.Fprintln(w, customer.In(tick))
	}
	return err
}

// show draws the page.
func (s *service) show(w http.ResponseWriter, _ *http.Request) error {
	var customers []Customer
	err := s.db.Order("name").Find(&customers).Error
	jobs, jobsErr := scheduler.ListJobs(nil)
	runs, runsErr := scheduler.ListRuns(&smallben.ListRunsOptions{Limit: 20})
	if err := errors.Join(err, jobsErr, runsErr); err != nil {
		return err
	}
	reminders := make(map[int64][]smallben.Job) // by customer
	for _, job := range jobs {
		reminders[job.GroupID] = append(reminders[job.GroupID], job)
	}
	return page.Execute(w, map[string]any{"Customers": customers, "Reminders": reminders, "Runs": runs})
}

// handler answers a request, or returns what is wrong. After a form comes the page.
type handler func(w http.ResponseWriter, r *http.Request) error

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch err := h(w, r); {
	case err == nil && r.Method == http.MethodPost:
		http.Redirect(w, r, "/", http.StatusSeeOther)
	case err == nil:
	case errors.Is(err, smallben.ErrInvalidJob):
		http.Error(w, err.Error(), http.StatusBadRequest)
	case errors.Is(err, smallben.ErrJobNotFound):
		http.Error(w, "the customer has no reminders", http.StatusNotFound)
	default:
		slog.Error("request failed", "path", r.URL.Path, "error", err)
		http.Error(w, "the database did not answer: look before you try again", http.StatusServiceUnavailable)
	}
}
