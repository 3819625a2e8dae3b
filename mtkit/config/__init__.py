"""The config: typed, frozen sections, loaded from strict YAML and overrides, with all errors reported at once."""
