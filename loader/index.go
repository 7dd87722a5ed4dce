package loader

import (
	"encoding/json"
	"maps"
	"slices"

	"github.com/engram-go/engram/internal/safetensors"
)

// readIndex reads which shard each tensor is in.
func readIndex(f folder) (map[string]string, error) {
	raw, err := readFile(f, indexFile, maxIndex)
	if err != nil {
		return nil, err
	}
	var index struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, bad("load %s: %w", f.path(indexFile), err)
	}
	if len(index.WeightMap) == 0 {
		return nil, bad("load %s: weight_map is empty", f.path(indexFile))
	}
	for _, tensor := range slices.Sorted(maps.Keys(index.WeightMap)) {
		if err := checkShardName(index.WeightMap[tensor]); err != nil {
			return nil, bad("load %s: tensor %q: %w", f.path(indexFile), tensor, err)
		}
	}
	return index.WeightMap, nil
}

// checkIndex compares the index with what the shards hold, both ways.
func checkIndex(f folder, placed map[string]string, files []*safetensors.File) error {
	held := map[string]string{}
	for _, file := range files {
		for i := range file.Entries {
			name := file.Entries[i].Name
			if other, ok := held[name]; ok {
				return bad("load %s: tensor %q is also in %s", file.Path(), name, other)
			}
			held[name] = file.Base()
			switch shard, ok := placed[name]; {
			case !ok:
				return bad("load %s: tensor %q is not in %s", file.Path(), name, indexFile)
			case shard != file.Base():
				return bad("load %s: tensor %q: %s places it in %s", file.Path(), name, indexFile, shard)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(placed)) {
		if _, ok := held[name]; !ok {
			return bad("load %s: tensor %q is missing, although %s places it there",
				f.path(placed[name]), name, indexFile)
		}
	}
	return nil
}
