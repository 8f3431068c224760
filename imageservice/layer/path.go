package layer

import (
	"encoding/json"
	"unicode/utf8"
)

// Path is a path in a layer: any bytes but NUL. In JSON, whose strings are UTF-8, others stand as a list of one base64.
type Path string

// MarshalJSON implements json.Marshaler.
func (p Path) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(p)) {
		return json.Marshal(string(p))
	}
	return json.Marshal([][]byte{[]byte(p)})
}

// UnmarshalJSON implements json.Unmarshaler.
func (p *Path) UnmarshalJSON(raw []byte) error {
	var list [1][]byte
	if json.Unmarshal(raw, &list) == nil {
		*p = Path(list[0])
		return nil
	}
	return json.Unmarshal(raw, (*string)(p))
}
