package cri

import "github.com/opencontainers/go-digest"

// chainID names a stack of layers (image-spec config.md#layer-chainid). It is empty for none.
func chainID(diffIDs []digest.Digest) digest.Digest {
	var chain digest.Digest
	for _, d := range diffIDs {
		if chain == "" {
			chain = d
			continue
		}
		chain = digest.FromString(chain.String() + " " + d.String())
	}
	return chain
}
