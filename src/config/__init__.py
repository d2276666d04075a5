"""The configuration: values in yaml files, types and ranges in `schema`, the reader's table in `document`."""
