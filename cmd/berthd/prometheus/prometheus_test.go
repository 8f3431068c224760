package prometheus

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestWhatIsWritten(t *testing.T) {
	c := &Calls{Version: `1"2`, Gauges: append(Process(time.Unix(100, 0)), Gauge{Name: "berth_pods", Help: "Pods.", Label: "state", Read: func() map[string]float64 {
		return map[string]float64{"ready": 2, "notready": 0}
	}})}
	var group sync.WaitGroup
	for range 10 {
		group.Go(func() {
			c.Observe("Version", "OK", 2*time.Millisecond)
			c.Observe("PullImage", "Unknown", 2*time.Minute)
		})
	}
	group.Wait()
	c.Observe("Version", "Canceled", time.Millisecond)
	r := httptest.NewRecorder()
	c.ServeHTTP(r, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	text := r.Body.String()
	for _, want := range []string{
		`berth_build_info{version="1\"2"} 1`, `berth_pods{state="notready"} 0`, `berth_pods{state="ready"} 2`, "process_start_time_seconds 100",
		`berth_cri_calls_total{method="PullImage",code="Unknown"} 10`, `berth_cri_calls_total{method="Version",code="OK"} 10`,
		`berth_cri_call_seconds_bucket{method="Version",le="0.001"} 1`, `berth_cri_call_seconds_bucket{method="Version",le="0.0025"} 11`,
		`berth_cri_call_seconds_bucket{method="Version",le="+Inf"} 11`, `berth_cri_call_seconds_count{method="Version"} 11`,
		`berth_cri_call_seconds_bucket{method="PullImage",le="60"} 0`, `berth_cri_call_seconds_bucket{method="PullImage",le="+Inf"} 10`,
		`berth_cri_call_seconds_sum{method="PullImage"} 1200`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no line %q", want)
		}
	}
	line := regexp.MustCompile(`^(# (HELP|TYPE) [a-z_]+ .+|[a-z_]+(\{[a-z_]+="[^{}]*"\})? [0-9.e+-]+)$`)
	for l := range strings.Lines(text) {
		if !line.MatchString(strings.TrimSuffix(l, "\n")) {
			t.Errorf("the line %q is not of the format", l)
		}
	}
	if m := regexp.MustCompile(`process_(resident_memory_bytes|open_fds) [1-9]`).FindAllString(text, -1); len(m) != 2 {
		t.Errorf("the process has %q", m)
	}
	for method, path := range map[string]string{http.MethodGet: "/", http.MethodPost: "/metrics"} {
		r := httptest.NewRecorder()
		if c.ServeHTTP(r, httptest.NewRequest(method, path, nil)); r.Code < 400 {
			t.Errorf("%s %s = %d", method, path, r.Code)
		}
	}
}
