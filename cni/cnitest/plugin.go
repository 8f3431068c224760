package cnitest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// PluginConf is the configuration of the fake plugin, besides what the specification says.
type PluginConf struct {
	CNIVersion    string          `json:"cniVersion"`
	Name          string          `json:"name"`
	Type          string          `json:"type"`
	Capabilities  map[string]bool `json:"capabilities,omitempty"`
	Chained       bool            `json:"chained"` // passes the result on
	State         string          `json:"state"`   // folder: a file for each attachment, "log", and "script"
	RuntimeConfig json.RawMessage `json:"runtimeConfig,omitempty"`
	PrevResult    json.RawMessage `json:"prevResult,omitempty"`
	Valid         []struct {
		ContainerID string `json:"containerID"`
		IfName      string `json:"ifname"`
	} `json:"cni.dev/valid-attachments,omitempty"`
}

// Call is a line of the plugin's log.
type Call struct {
	Command, ContainerID, NetNS, IfName, Args string
	Stdin                                     json.RawMessage
}

// SetScript tells the plugins whose state is in the folder what to do: an action for each command. Actions are "" (work), "fail",
// "fail late" (work, then say so), "crash", "hang", "fork" (leave a child that holds the pipes, and hang), "garbage", "empty", "nulls", "huge",
// "noisy" (1 MiB of standard error, then crash), "no address", "same address", "json and exit 1".
func SetScript(state string, script map[string]string) error {
	b, err := json.Marshal(script)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(state, "script"), b, 0o600)
}

// Calls reads the log of the plugins whose state is in the folder.
func Calls(state string) ([]Call, error) {
	b, err := os.ReadFile(filepath.Join(state, "log"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var calls []Call
	dec := json.NewDecoder(strings.NewReader(string(b)))
	for {
		var c Call
		if err := dec.Decode(&c); err == io.EOF {
			return calls, nil
		} else if err != nil {
			return calls, err
		}
		calls = append(calls, c)
	}
}

// Attached returns the container IDs that the plugins whose state is in the folder have attached, sorted.
func Attached(state string) ([]string, error) {
	entries, err := os.ReadDir(state)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutPrefix(e.Name(), "attached-"); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Plugin is the fake plugin's main function: it returns the exit code.
func Plugin() int {
	stdin, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 2
	}
	if os.Getenv("CNI_COMMAND") == "VERSION" {
		fmt.Println(`{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}`)
		return 0
	}
	var conf PluginConf
	if err := json.Unmarshal(stdin, &conf); err != nil || conf.State == "" {
		return say(conf, 6, fmt.Sprintf("read configuration: %v", err))
	}
	call := Call{
		Command: os.Getenv("CNI_COMMAND"), ContainerID: os.Getenv("CNI_CONTAINERID"), NetNS: os.Getenv("CNI_NETNS"),
		IfName: os.Getenv("CNI_IFNAME"), Args: os.Getenv("CNI_ARGS"), Stdin: stdin,
	}
	if err := logCall(conf, call); err != nil {
		return say(conf, 5, err.Error())
	}
	script := make(map[string]string)
	if b, err := os.ReadFile(filepath.Join(conf.State, "script")); err == nil {
		_ = json.Unmarshal(b, &script)
	}
	action := script[call.Command]
	if code, done := misbehave(conf, action); done {
		return code
	}
	switch call.Command {
	case "ADD":
		return add(conf, call, action)
	case "DEL":
		forgetAttached(conf, call.ContainerID)
	case "CHECK":
		if _, err := os.Stat(attachedFile(conf, call.ContainerID)); err != nil && !conf.Chained {
			return say(conf, 100, "not attached")
		}
	case "GC":
		return collect(conf)
	}
	return 0
}

func attachedFile(conf PluginConf, containerID string) string {
	return filepath.Join(conf.State, "attached-"+containerID)
}

func logCall(conf PluginConf, call Call) error {
	f, err := os.OpenFile(filepath.Join(conf.State, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	b, err := json.Marshal(call)
	if err == nil {
		_, err = f.Write(append(b, '\n'))
	}
	return errors.Join(err, f.Close())
}

// say prints an error in the form of the specification.
func say(conf PluginConf, code uint, text string) int {
	_ = json.NewEncoder(os.Stdout).Encode(map[string]any{"cniVersion": conf.CNIVersion, "code": code, "msg": text})
	return 1
}

// misbehave does what needs no knowledge of the command.
func misbehave(conf PluginConf, action string) (code int, done bool) {
	switch action {
	case "fail":
		return say(conf, 101, "scripted failure"), true
	case "crash":
		fmt.Fprintln(os.Stderr, "scripted crash")
		return 3, true
	case "hang":
		time.Sleep(time.Hour)
	case "fork":
		child := exec.Command("sleep", "3600")
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		if err := child.Start(); err != nil {
			return say(conf, 5, err.Error()), true
		}
		_ = os.WriteFile(filepath.Join(conf.State, "child"), fmt.Append(nil, child.Process.Pid), 0o600)
		time.Sleep(time.Hour)
	case "garbage":
		fmt.Print("\x00\xff\x1b[2J not JSON")
		return 0, true
	case "empty":
		return 0, true
	case "nulls":
		fmt.Printf(`{"cniVersion":%q,"interfaces":[null],"ips":[null],"routes":[null]}`, conf.CNIVersion)
		return 0, true
	case "huge":
		for range 1 << 10 {
			if _, err := os.Stdout.WriteString(strings.Repeat(" ", 1<<20)); err != nil {
				return 1, true
			}
		}
		return 0, true
	case "noisy":
		_, _ = os.Stderr.WriteString(strings.Repeat("x", 1<<20) + "the end")
		return 3, true
	}
	return 0, false
}

func add(conf PluginConf, call Call, action string) int {
	if conf.Chained {
		_, _ = os.Stdout.Write(conf.PrevResult)
		return 0
	}
	f, err := os.OpenFile(attachedFile(conf, call.ContainerID), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return say(conf, 102, "ADD after ADD without DEL: "+err.Error())
	}
	n := address(conf)
	_, _ = fmt.Fprint(f, n)
	_ = f.Close()
	switch action {
	case "fail late":
		return say(conf, 103, "scripted late failure")
	case "same address":
		n = 1
	}
	result := map[string]any{
		"cniVersion": conf.CNIVersion,
		"interfaces": []map[string]any{{"name": "vfake"}, {"name": call.IfName, "sandbox": call.NetNS}},
		"ips":        []map[string]any{{"interface": 1, "address": fmt.Sprintf("198.19.%d.%d/16", n/250, 1+n%250), "gateway": "198.19.0.1"}},
	}
	if action == "no address" {
		delete(result, "ips")
	}
	_ = json.NewEncoder(os.Stdout).Encode(result)
	if action == "json and exit 1" {
		return 1
	}
	return 0
}

// address takes the number of a free address.
func address(conf PluginConf) int {
	for n := 2; ; n++ {
		f, err := os.OpenFile(filepath.Join(conf.State, fmt.Sprint("address-", n)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err == nil {
			_ = f.Close()
			return n
		}
	}
}

func forgetAttached(conf PluginConf, containerID string) {
	path := attachedFile(conf, containerID)
	n, err := os.ReadFile(path)
	_ = os.Remove(path)
	if err == nil {
		_ = os.Remove(filepath.Join(conf.State, "address-"+string(n)))
	}
}

func collect(conf PluginConf) int {
	attached, err := Attached(conf.State)
	if err != nil {
		return say(conf, 5, err.Error())
	}
	for _, id := range attached {
		valid := false
		for _, v := range conf.Valid {
			valid = valid || v.ContainerID == id
		}
		if !valid {
			forgetAttached(conf, id)
		}
	}
	return 0
}
