package main

import (
	"bytes"
	"testing"
	"time"
)

func TestSize(t *testing.T) {
	for in, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 1500: "1.5 kB", 12_345: "12 kB", 999_999: "1000 kB", 4_200_000: "4.2 MB",
		1_100_000_000: "1.1 GB", 5_000_000_000_000_000_000: "5000 PB",
	} {
		if got := size(in); got != want {
			t.Errorf("size(%d) = %q, want %q", in, got, want)
		}
	}
}

func TestAge(t *testing.T) {
	for in, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 90 * time.Second: "90s", 2 * time.Minute: "2m", 150 * time.Second: "2m30s", 45 * time.Minute: "45m",
		3*time.Hour + 5*time.Minute: "3h5m", 30 * time.Hour: "30h", 3*24*time.Hour + 4*time.Hour: "3d4h", 40 * 24 * time.Hour: "40d",
	} {
		if got := age(in); got != want {
			t.Errorf("age(%v) = %q, want %q", in, got, want)
		}
	}
}

func TestTableAlignsAndDefusesCells(t *testing.T) {
	var b bytes.Buffer
	if err := printTable(&b, []string{"NAME", "STATE"}, [][]string{{"long-name", ""}, {"x\x1b[2Jy", "Ready"}}); err != nil {
		t.Fatal(err)
	}
	want := "NAME        STATE\nlong-name   -\nx?[2Jy      Ready\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestSplitTag(t *testing.T) {
	for in, want := range map[string][2]string{
		"r/x:1": {"r/x", "1"}, "r:5000/x": {"r:5000/x", ""}, "r:5000/x:2": {"r:5000/x", "2"}, "x": {"x", ""},
	} {
		if name, tag := splitTag(in); name != want[0] || tag != want[1] {
			t.Errorf("splitTag(%q) = %q, %q", in, name, tag)
		}
	}
}
