// Package fulldisk stands in for a full disk in tests: the largest size of a file is limited.
package fulldisk
