"""Near-duplicates, groups and sampling weights of a finished data set"""
