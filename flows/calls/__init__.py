"""What `import winnow` offers: the calls, one file each."""
