"""What lies in an input folder: series, studies, label maps, classes."""
