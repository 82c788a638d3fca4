"""Apps to start with: `shardnet run examples.echo:handler`."""
