package snapshottest

import (
	"strconv"
	"strings"
)

func itoa(fd uintptr) string { return strconv.FormatUint(uint64(fd), 10) }

// Case is a stack of layers.
type Case struct {
	Name   string
	Layers [][]byte
}

// Cases are stacks that have a meaning; many have been unpacked wrongly by someone.
func Cases() []Case {
	long := strings.Repeat("long-name-", 20)
	deep := strings.Repeat("d/", 60) + long
	cases := []Case{
		{"plain files", [][]byte{
			Layer(Dir("etc", 0o755), File("etc/a", "a"), File("empty", ""), Symlink("l", "etc/a")),
			Layer(Dir("etc", 0o700), File("etc/a", "A"), File("etc/b", "b"))}},
		{"owners, modes and special bits", [][]byte{Layer(
			Dir("tmp", 0o1777), Dir("sgid", 0o2775).As(5, 6, 0o2775), File("sgid/f", "").As(0, 0, 0o640), Dir("sgid/d", 0o755), Symlink("sgid/l", "f").As(9, 9, 0o777),
			File("suid", "x").As(0, 0, 0o4755), File("suid2", "x").As(1000, 1000, 0o6711), File("none", "").As(65534, 65534, 0), File("big", "").As(1<<31, 1<<32-2, 0o600))}},
		{"root entry", [][]byte{
			Layer(Dir(".", 0o711).As(1, 2, 0o711).With("user.r", "1"), File("a", "")), Layer(File("b", "")), Layer(), Layer(Dir("/", 0o1755)), Layer(File("c", ""))}},
		{"empty layers", [][]byte{Layer(), Layer(), Layer(Dir("d", 0o700)), Layer(), Layer(File("d/f", "")), Layer()}},
		{"the same layer twice", [][]byte{Layer(Dir("d", 0o700), File("d/f", "1")), Layer(File("d/f", "2"), Dir("d", 0o711)), Layer(Dir("d", 0o700), File("d/f", "1"))}},
		{"implicit parents inherit", [][]byte{
			Layer(Dir("a", 0o700).As(3, 4, 0o700).With("user.k", "v"), Dir("a/b", 0o2750), Dir("a/b/c", 0o711)),
			Layer(File("a/b/c/f", "f"), File("new/b/c", "c")),
			Layer(Dir("new", 0o500), File("a/b/g", "g")),
			Layer(File("new/b/d", "d"), Dir("a/b", 0o755))}},
		{"implicit parents, opaque", [][]byte{
			Layer(Dir("a", 0o700), Dir("a/b", 0o701), File("a/b/x", "x"), File("a/y", "y")),
			Layer(Opaque("a"), File("a/b/z", "z")),
			Layer(File("a/b/w", "w"))}},
		{"implicit parents, whited out", [][]byte{
			Layer(Dir("a", 0o700), Dir("a/b", 0o701), File("a/b/x", "x")),
			Layer(File("a/b/z", "z"), Whiteout("a", "b"), Whiteout(".", "q"))}},
		{"path through a lower symlink", [][]byte{
			Layer(Dir("usr", 0o755), Dir("usr/lib", 0o711).As(1, 1, 0o711), Symlink("lib", "usr/lib"), File("usr/lib/a", "a"), Symlink("abs", "/lib"), Symlink("usr/up", "../lib")),
			Layer(File("lib/b", "b"), File("abs/c", "c"), File("usr/up/d", "d"), Dir("lib/sub", 0o700)),
			Layer(File("lib/sub/e", "e"), Whiteout("abs", "a"))}},
		{"names that are not UTF-8", [][]byte{
			Layer(Dir("a\xff", 0o700), File("a\xff/x", "x"), Dir("d\xfe", 0o711), Symlink("s\xff", "d\xfe"), File("gone\xff", "")),
			Layer(File("a\xff/y", "y"), File("s\xff/z", "z"), Dir("w\xff", 0o755), Whiteout("w\xff", "x"), File("f\xff", "1"), File("f\xff", "2"), Whiteout(".", "gone\xff")),
			Layer(File("w\xff/v", "v"), Whiteout("a\xff", "x"))}},
		{"path through a dangling lower symlink", [][]byte{
			Layer(Symlink("run", "/var/run"), Symlink("rel", "no/where")), Layer(File("run/x", "x"), File("rel/y", "y"))}},
		{"path through a lower file", [][]byte{Layer(File("a", "file"), File("b/c", "")), Layer(File("a/x", "x"), File("b/c/d/e", "e"))}},
		{"path through a symlink of the layer", [][]byte{
			Layer(Dir("d", 0o700)), Layer(Symlink("s", "d"), File("s/x", "x"), Symlink("t", "/s/new"), File("t/y", "y"))}},
		{"a directory replaces a lower symlink", [][]byte{
			Layer(Dir("d", 0o755), File("d/x", "x"), Symlink("s", "d")), Layer(Dir("s", 0o700), File("s/y", "y"))}},
		{"a directory replaces a lower symlink after use", [][]byte{
			Layer(Dir("d", 0o755), Symlink("s", "d")), Layer(File("s/x", "x"), Dir("s", 0o700), File("s/y", "y"))}},
		{"a file replaces a lower symlink after use", [][]byte{
			Layer(Dir("d", 0o755), Symlink("s", "d"), Symlink("t", "d")), Layer(File("s/x", "x"), File("s", ""), File("t/y/z", "z"), File("t/y", ""), File("t", ""))}},
		{"types change", [][]byte{
			Layer(Dir("a", 0o755), File("a/x", "x"), File("b", "b"), Symlink("c", "a"), FIFO("d"), Char("e", 1, 3)),
			Layer(File("a", "a"), Dir("b", 0o700), Char("c", 1, 5), Symlink("d", "b"), FIFO("e")),
			Layer(Dir("a", 0o711), File("b/y", "y"), Dir("c", 0o700), Dir("d", 0o700), File("e", "e"))}},
		{"types change within a layer", [][]byte{
			Layer(Dir("a", 0o755), File("a/x", "x"), Dir("b", 0o755), File("b/x", "x")),
			Layer(File("a", "1"), Dir("a", 0o700), File("a/y", "y"), Dir("b", 0o700), File("b/1", "1"), Symlink("b", "a"), File("b/2", "2"), File("c", "1"), File("c", "2"), Dir("d", 0o700), Dir("d", 0o711))}},
		{"file capabilities and extended attributes", [][]byte{
			Layer(File("ping", "x").As(1, 1, 0o755).With("security.capability", Capability), Dir("d", 0o755).With("user.a", "1"), File("u", "").With("user.b", "\x00bin")),
			Layer(Dir("d", 0o755).With("user.c", "2"), File("o", "").With("trusted.overlay.opaque", "y").With("user.overlay.opaque", "y").With("security.ima", "x"))}},
		{"names", [][]byte{
			Layer(File(long+"/"+long, "1"), File(deep, "2"), Symlink("ll", "x/"+strings.Repeat("y/", 400)), File("new\nline \x7f\\", "3"), File("ü", "4"), File("\xff\xfe", "5"), File("a//b/./c", "6")),
			Layer(File(deep+"2", "7"), File("./a/../a/b/d", "8"), File("/abs", "9"), File("../../up", "10"), File("a/../../x", "11"), File("...", "12"))}},
		{"AUFS's own", [][]byte{Layer(File(".wh..wh.aufs", ""), Dir(".wh..wh.plnk", 0o700), File(".wh..wh.plnk/1.2", "x"), File("a", "a"))}},
		{"many folders", many(150)},
	}
	cases = append(cases, whiteoutCases()...)
	return append(cases, linkCases()...)
}

func whiteoutCases() []Case {
	return []Case{
		{"whiteouts", [][]byte{
			Layer(Dir("a", 0o755), File("a/x", "x"), File("a/y", "y"), Dir("a/d", 0o755), File("a/d/z", "z"), File("r", "r")),
			Layer(Whiteout("a", "x"), Whiteout("a", "d"), Whiteout(".", "r"), Whiteout("a", "never")),
			Layer(File("a/d/new", ""), File("a/x", "again"))}},
		{"whiteouts in the lowest layer", [][]byte{Layer(Whiteout("a", "x"), Opaque("b"), File("c", ""), Dir("d", 0o700), Whiteout("d", "y")), Layer(File("b/f", ""))}},
		{"whiteouts where nothing is below", [][]byte{Layer(File("f", "")), Layer(Whiteout("a/b", "x"), Dir("d", 0o700), Whiteout("d", "y"), File("d/z", ""))}},
		{"whiteouts of the layer's own", [][]byte{
			Layer(Dir("a", 0o755), File("a/x", "below"), File("b", "below"), File("c", "below")),
			Layer(Whiteout(".", "a"), Dir("a", 0o700), File("a/y", "y"), File("b", "own"), Whiteout(".", "b"), Whiteout(".", "c"), File("c", "own"))}},
		{"opaque directories", [][]byte{
			Layer(Dir("a", 0o755), File("a/x", "x"), Dir("a/d", 0o755), File("a/d/z", "z"), Dir("b", 0o755), File("b/x", "x")),
			Layer(Dir("a", 0o700), Opaque("a"), File("a/y", "y"), Whiteout("a", "x"), File("b/y", "y"), Opaque("b")),
			Layer(File("a/d/1", "1"))}},
		{"opaque root", [][]byte{
			Layer(Dir(".", 0o711), File("x", "x"), Dir("d", 0o700), File("d/y", "y")), Layer(Opaque("."), File("d/z", "z"), File("n", "n")), Layer(File("d/w", ""))}},
		{"whiteout through a symlink", [][]byte{
			Layer(Dir("d", 0o755), File("d/x", "x"), File("d/y", "y"), Symlink("s", "d")), Layer(Whiteout("s", "x")), Layer(Symlink("t", "d"), Whiteout("t", "y"))}},
	}
}

func linkCases() []Case {
	return []Case{
		{"hard links", [][]byte{
			Layer(File("a", "a").As(1, 2, 0o600), Link("b", "a"), Symlink("s", "a"), Link("t", "s"), FIFO("f"), Link("g", "f"), Char("c", 1, 3), Link("d", "c")), Layer(File("a", "new"))}},
		{"hard link to a lower layer", [][]byte{
			Layer(Dir("d", 0o700), File("d/a", "a").As(1, 2, 0o4711).With("security.capability", Capability), Symlink("s", "d/a"), File("o", "o")),
			Layer(Link("b", "d/a"), Link("t", "s"), File("o", "O"), Link("p", "o")),
			Layer(Link("c", "b"), File("d/a", "replaced"))}},
		{"hard link into a lower link group", [][]byte{
			Layer(Dir("x", 0o755), Dir("y", 0o711), File("x/a", "a"), Link("y/b", "x/a"), Link("c", "x/a"), Link("z", "x/a"), Link("q/r", "x/a")),
			Layer(File("z", "own"), Whiteout(".", "q"), Link("n", "y/b"), Whiteout(".", "c"))}},
		{"hard link through a lower symlink", [][]byte{Layer(Dir("d", 0o700), File("d/a", "a"), Symlink("s", "d")), Layer(Link("s/b", "s/a"))}},
		{"hard link, its target whited out after", [][]byte{
			Layer(Dir("d", 0o700), File("d/a", "a"), File("d/b", "b")), Layer(Link("x", "d/a"), Whiteout("d", "a"), Link("y", "d/b"), Whiteout(".", "d"))}},
		{"hard link to itself", [][]byte{Layer(File("a", "a"), Link("a", "a")), Layer(Link("./a", "/a"))}},
	}
}

func many(n int) [][]byte {
	layers := [][]byte{Layer(Dir(".", 0o700), Dir("d", 0o700))}
	for i := range n {
		layers = append(layers, Layer(File("d/"+strconv.Itoa(i), "")))
	}
	return layers
}

// MalformedCases are stacks without a meaning, or that no one may have.
func MalformedCases() []Case {
	chain := []Entry{}
	for i := range 50 {
		chain = append(chain, Symlink("s"+strconv.Itoa(i), "s"+strconv.Itoa(i+1)))
	}
	return []Case{
		{"whiteout of nothing", [][]byte{Layer(Whiteout("a", ""))}},
		{"whiteout of dot", [][]byte{Layer(Whiteout("a", "."))}},
		{"whiteout of dot-dot", [][]byte{Layer(Whiteout("a", ".."))}},
		{"path in a whiteout", [][]byte{Layer(File("a/.wh.b/c", ""))}},
		{"root is a file", [][]byte{Layer(File(".", ""))}},
		{"root is a symlink", [][]byte{Layer(Symlink(".", "/tmp"))}},
		{"link to nothing", [][]byte{Layer(Link("a", "b"))}},
		{"link to a later entry", [][]byte{Layer(File("x", "")), Layer(Link("a", "b"), File("b", ""))}},
		{"link to a directory of its layer", [][]byte{Layer(File("x", "")), Layer(Dir("d", 0o755), Link("a", "d"))}},
		{"link to a directory", [][]byte{Layer(Dir("d", 0o755)), Layer(Link("a", "d"))}},
		{"link to what it replaces in its layer", [][]byte{Layer(File("d/f", "f"), Link("d", "d/f"))}},
		{"link to what it replaces", [][]byte{Layer(File("d/f", "")), Layer(Link("d", "d/f"))}},
		{"link to what is whited out", [][]byte{Layer(File("a", "")), Layer(Whiteout(".", "a"), Link("b", "a"))}},
		{"symlink loop", [][]byte{Layer(Symlink("a", "b"), Symlink("b", "a"), File("a/x", ""))}},
		{"symlink loop below", [][]byte{Layer(Symlink("a", "b"), Symlink("b", "a")), Layer(File("a/x", ""))}},
		{"symlink chain too long", [][]byte{Layer(append(chain, File("s0/x", ""))...)}},
		{"component too long", [][]byte{Layer(File(strings.Repeat("n", 300), ""))}},
		{"path too long", [][]byte{Layer(File(strings.Repeat("dir/", 1100)+"x", ""))}},
		{"forged whiteout", [][]byte{Layer(Char("x", 0, 0))}},
		{"device out of range", [][]byte{Layer(Char("x", 1<<12, 1))}},
		{"minor number out of range", [][]byte{Layer(Char("x", 1, 1<<20))}},
		{"negative device", [][]byte{Layer(gnu(Char("x", -1, 1)))}},
		{"negative minor number", [][]byte{Layer(gnu(Char("x", 1, -1)))}},
		{"owner out of range", [][]byte{Layer(File("x", "").As(1<<32-1, 0, 0o644))}},
		{"owner negative", [][]byte{Layer(File("x", "").As(-1, 0, 0o644))}},
		{"group out of range", [][]byte{Layer(File("x", "").As(0, 1<<32-1, 0o644))}},
		{"group negative", [][]byte{Layer(File("x", "").As(0, -1, 0o644))}},
		{"truncated", [][]byte{Layer(File("x", strings.Repeat("x", 5000)))[:2000]}},
		{"no tar", [][]byte{[]byte(strings.Repeat("not a tar ", 200))}},
	}
}
