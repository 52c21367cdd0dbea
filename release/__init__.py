"""What is built around the package: data files, the Debian package, the image."""
