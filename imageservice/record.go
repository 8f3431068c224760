package imageservice

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/reference"
	"github.com/berthd/berth/imageservice/snapshot"
)

// openFile opens a record. Tests make it fail.
var openFile = os.Open

// recordVersion is that of the format below. A daemon reads no record of a version that it does not know.
const recordVersion = 1

// record is one image on disk. Raw bytes of the image stand apart from what berth says, and are checked against their
// digests when they are read.
type record struct {
	ImageID     string           `json:"imageID"`
	Tags        map[string]int64 `json:"tags"`    // HOST/PATH:TAG to when it was pulled, ns since 1970: the later wins
	RepoDigests []string         `json:"digests"` // HOST/PATH@DIGEST
	MediaType   string           `json:"manifestMediaType"`
	Digest      digest.Digest    `json:"manifestDigest"`
	Manifest    []byte           `json:"manifest"`
	Config      []byte           `json:"config"`
	Layers      []recordLayer    `json:"layers"`
	Pulled      int64            `json:"pulled"` // ns since 1970

	ArtifactType string `json:"artifactType,omitempty"` // such a record has no config, and the manifest's digest is the ID
}

type recordLayer struct {
	Digest digest.Digest `json:"digest"`
	DiffID digest.Digest `json:"diffID"`
	Size   int64         `json:"size"`
	Bytes  int64         `json:"bytes"`
}

// encode writes the header line "berth-image VERSION SHA256\n" and the JSON that it covers.
func (r *record) encode() ([]byte, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	sum := sha256.Sum256(body)
	return append(fmt.Appendf(nil, "berth-image %d %x\n", recordVersion, sum), body...), nil
}

// decodeRecord reads what encode wrote, and checks everything that can be checked without looking elsewhere.
func decodeRecord(raw []byte) (*record, error) {
	head, body, ok := bytes.Cut(raw, []byte("\n"))
	if !ok {
		return nil, errors.New("it has no header line")
	}
	var version int
	var sum string
	if n, err := fmt.Sscanf(string(head), "berth-image %d %64s", &version, &sum); n != 2 || err != nil {
		return nil, errors.New("its header line is malformed")
	}
	if version != recordVersion {
		return nil, fmt.Errorf("its version is %d, known is %d", version, recordVersion)
	}
	if got := sha256.Sum256(body); hex.EncodeToString(got[:]) != sum {
		return nil, errors.New("its checksum is wrong")
	}
	r := &record{}
	if err := json.Unmarshal(body, r); err != nil {
		return nil, fmt.Errorf("decode JSON: %w", err)
	}
	return r, r.check()
}

func (r *record) check() error {
	if r.ArtifactType == "" && digest.FromBytes(r.Config).String() != r.ImageID {
		return errors.New("its config is not that of the image")
	}
	if r.ArtifactType != "" && (r.Digest.String() != r.ImageID || len(r.Layers) != 1) {
		return errors.New("it is of an artifact, and its manifest is not that of the image or its layers are not one")
	}
	if d, err := reference.ParseDigest(r.Digest.String()); err != nil || d.Algorithm().FromBytes(r.Manifest) != d {
		return errors.New("its manifest is not that of its digest")
	}
	for tag := range r.Tags {
		if ref, err := reference.Parse(tag); err != nil || ref.String() != tag || ref.Tag == "" {
			return fmt.Errorf("its tag %q is malformed", tag)
		}
	}
	for _, d := range r.RepoDigests {
		if ref, err := reference.Parse(d); err != nil || ref.String() != d || ref.Digest == "" {
			return fmt.Errorf("its digest %q is malformed", d)
		}
	}
	return nil
}

// image makes the Image that a record stands for.
func (r *record) image() (Image, error) {
	config, diffIDs, err := r.content()
	if err != nil {
		return Image{}, err
	}
	img := Image{
		ID: r.ImageID, RepoDigests: slices.Clone(r.RepoDigests), Config: config, DiffIDs: diffIDs, RawConfig: r.Config,
		Manifest: Manifest{MediaType: r.MediaType, Digest: r.Digest, Raw: r.Manifest}, Pulled: time.Unix(0, r.Pulled),
		ArtifactType: r.ArtifactType,
	}
	if len(r.Layers) != len(diffIDs) {
		return Image{}, fmt.Errorf("it has %d layers, its config %d", len(r.Layers), len(diffIDs))
	}
	seen := map[digest.Digest]bool{}
	for i, l := range r.Layers {
		if l.DiffID != diffIDs[i] {
			return Image{}, fmt.Errorf("its layer %d is not that of its config", i)
		}
		img.Layers = append(img.Layers, Layer(l))
		if !seen[l.DiffID] {
			img.Size += uint64(max(0, l.Bytes))
			seen[l.DiffID] = true
		}
	}
	for tag := range r.Tags {
		img.RepoTags = append(img.RepoTags, tag)
	}
	slices.Sort(img.RepoTags)
	slices.Sort(img.RepoDigests)
	return img, nil
}

// content is the config, and what the layers are to be.
func (r *record) content() (ImageConfig, []digest.Digest, error) {
	if r.ArtifactType != "" {
		d, err := reference.ParseDigest(r.Layers[0].DiffID.String())
		if err == nil && d.Algorithm() != digest.SHA512 {
			err = fmt.Errorf("its layer %s is not one of an artifact", d)
		}
		return ImageConfig{}, []digest.Digest{d}, err
	}
	_, config, diffIDs, err := parseConfig(r.Config)
	return config, diffIDs, err
}

func (r *record) clone() *record {
	c := *r
	c.Tags = map[string]int64{}
	for tag, at := range r.Tags {
		c.Tags[tag] = at
	}
	c.RepoDigests = slices.Clone(r.RepoDigests)
	return &c
}

// records is the folder of records. Its methods touch the disk; the caller sees to it that one runs at a time.
type records struct {
	dir, quarantine string
}

func openRecords(root string) (records, error) {
	rs := records{dir: filepath.Join(root, "records"), quarantine: filepath.Join(root, "quarantine")}
	for _, dir := range []string{root, rs.dir, rs.quarantine} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return records{}, fmt.Errorf("make folder of images: %w", err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return records{}, fmt.Errorf("close folder of images to others: %w", err)
		}
	}
	return rs, nil
}

func (rs records) file(imageID string) string {
	return filepath.Join(rs.dir, strings.TrimPrefix(imageID, "sha256:"))
}

// write replaces a record atomically; when it returns the record is on disk.
func (rs records) write(r *record) (err error) {
	raw, err := r.encode()
	if err != nil {
		return err
	}
	file := rs.file(r.ImageID)
	tmp := file + ".tmp"
	defer func() {
		if err != nil {
			err = fmt.Errorf("write record of image %s: %w", r.ImageID, err)
			_ = os.Remove(tmp) // what is left is removed when the service opens
		}
	}()
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, file); err != nil {
		return err
	}
	return rs.sync()
}

// remove deletes a record; one that is gone is removed.
func (rs records) remove(imageID string) error {
	if err := os.Remove(rs.file(imageID)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove record of image %s: %w", imageID, err)
	}
	return rs.sync()
}

func (rs records) sync() error {
	d, err := os.Open(rs.dir)
	if err != nil {
		return fmt.Errorf("sync records: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync records: %w", err)
	}
	return nil
}

// load reads all records. What cannot be read is put aside, but for a shortage.
func (rs records) load() (good []*record, bad []error, err error) {
	entries, err := os.ReadDir(rs.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("list records of images: %w", err)
	}
	for _, e := range entries {
		file := filepath.Join(rs.dir, e.Name())
		if strings.HasSuffix(e.Name(), ".tmp") && e.Type().IsRegular() {
			if err := os.Remove(file); err != nil {
				return nil, nil, fmt.Errorf("remove half-written record: %w", err)
			}
			continue
		}
		r, err := readRecord(file)
		if snapshot.Shortage(err) {
			return nil, nil, fmt.Errorf("read record of image: %w", err)
		}
		if err != nil {
			bad = append(bad, rs.putAside(file, err))
			continue
		}
		good = append(good, r)
	}
	return good, bad, nil
}

func readRecord(file string) (*record, error) {
	st, err := os.Lstat(file)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxRecord {
		return nil, errors.New("it is not a regular file of sensible size")
	}
	f, err := openFile(file)
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	r, err := decodeRecord(raw)
	if err != nil {
		return nil, err
	}
	if "sha256:"+filepath.Base(file) != r.ImageID {
		return nil, errors.New("its name is not that of its image")
	}
	return r, nil
}

// putAside moves a bad record to the quarantine, and says so. If even that fails it stays where it is, and out of use.
func (rs records) putAside(file string, reason error) error {
	to := filepath.Join(rs.quarantine, fmt.Sprintf("%s.%d", filepath.Base(file), time.Now().UnixNano()))
	if err := os.Rename(file, to); err != nil {
		return fmt.Errorf("read record of image %s: %w", file, errors.Join(reason, err))
	}
	return fmt.Errorf("read record of image %s: %w; put aside as %s", file, reason, to)
}
