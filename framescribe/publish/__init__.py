"""Parts become the tables that people read: `publish_run.publish` does it all."""
