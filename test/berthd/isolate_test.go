package berthd

import "testing"

func TestIsolate(t *testing.T) {
	const times = "plugin_request_timeout = \"20s\"\nplugin_synchronization_timeout = \"20s\"\nplugin_registration_timeout = \"20s\"\n"
	const nri = "[nri]\n" + times + "plugin_config_path = \"/d/nri.conf\"\nplugin_path = \"/d/nri\"\n"
	for _, tc := range []struct{ name, config, want string }{
		{"nothing", "", "[cdi]\nspec_dirs = [\"/d/cdi\"]\n\n" + nri + "\n"},
		{"another table", "[network]\nmtu = 1\n", "[cdi]\nspec_dirs = [\"/d/cdi\"]\n\n" + nri + "\n[network]\nmtu = 1\n"},
		{"its own", "[cdi]\nspec_dirs = []\n[nri]\nplugin_path = \"/a\"\nplugin_config_path = \"/b\"\n",
			"[cdi]\nspec_dirs = []\n[nri]\n" + times + "plugin_path = \"/a\"\nplugin_config_path = \"/b\"\n"},
		{"one of them", "[cdi]\n[nri]\ndisable = true\nplugin_path = \"/a\"\n",
			"[cdi]\nspec_dirs = [\"/d/cdi\"]\n[nri]\n" + times + "plugin_config_path = \"/d/nri.conf\"\ndisable = true\nplugin_path = \"/a\"\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := Isolate(tc.config, "/d"); got != tc.want {
				t.Errorf("Isolate(%q) = %q, want %q", tc.config, got, tc.want)
			}
		})
	}
}
