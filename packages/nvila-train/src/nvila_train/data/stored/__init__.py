"""Rows as they are stored: files of lines, tables, tar shards, on this machine or streamed."""
