"""The YAML as typed, frozen sections: loading, overrides, rules, and all problems at once in plain words."""
