package imageservice

// Bounds of what an image may cost and say.
const (
	// A layer may unpack to Config.MinUnpacked bytes, or to maxRatio times its compressed size if that is more: deflate reaches
	// 1032, what people pack hardly 20.
	defaultMinUnpacked = int64(1) << 30
	maxRatio           = 100

	maxTitle     = 1024 // bytes of a file's title in an artifact
	maxTitleName = 255  // bytes of each name in it

	usualWindow = 8 << 20  // bytes of a zstd window that every layer may have: the highest regular level needs as much
	maxWindow   = 64 << 20 // of one that one layer at a time may have, of all pulls

	maxConfigEntries = 10_000  // of each list and map in a config
	maxConfigString  = 1 << 20 // bytes of each list and map in a config

	// Between two stages of a layer's stream lie at most readaheadCount pieces of readaheadSize bytes.
	readaheadCount = 4
	readaheadSize  = 256 << 10

	maxRecord = 32 << 20 // bytes of a record: config and manifest in base64, and room

	maxCachedFile  = 256 << 10 // bytes of a file that ReadFile remembers
	maxCachedFiles = 512
)
