package keyfile

import "crypto/rand"

// Shamir's secret sharing over GF(256) with the polynomial x^8+x^4+x^3+x+1:
// every byte of the secret is the constant term of its own random polynomial of
// degree threshold-1, and share x holds the values at x (1..255). Any
// threshold shares determine the secret; for fewer, every secret is equally
// likely. Coefficients may be zero, the highest one too: were it not, a share
// would exclude a value.

// gfMul multiplies without tables or branches on secret data.
func gfMul(a, b byte) (p byte) {
	for range 8 {
		p ^= a & -(b & 1)
		a = a<<1 ^ 0x1b&-(a>>7)
		b >>= 1
	}
	return p
}

// gfInv returns a^254, the inverse of a; 0 for 0.
func gfInv(a byte) byte {
	p := byte(1)
	for range 7 {
		a = gfMul(a, a)
		p = gfMul(p, a)
	}
	return p
}

// split returns the shares 1..n, of which k give the secret; 2 ≤ k ≤ n ≤ 255.
func split(secret []byte, n, k int) [][]byte {
	coeff := make([]byte, (k-1)*len(secret)) // of x^1, x^2, … for all bytes
	rand.Read(coeff)                         // crypto/rand.Read never fails
	defer wipe(coeff)
	shares := make([][]byte, n)
	for i := range shares {
		x := byte(i + 1)
		y := make([]byte, len(secret))
		for d := k - 2; d >= 0; d-- { // Horner's rule, the highest power first
			for j := range y {
				y[j] = gfMul(y[j], x) ^ gfMul(coeff[d*len(secret)+j], x)
			}
		}
		for j := range y {
			y[j] ^= secret[j]
		}
		shares[i] = y
	}
	return shares
}

// interpolate returns the values at position at of the polynomials that go
// through the points (xs[i], ys[i]); the xs are distinct.
func interpolate(xs []byte, ys [][]byte, at byte) []byte {
	out := make([]byte, len(ys[0]))
	for i := range xs {
		l := byte(1)
		for j := range xs {
			if j != i {
				l = gfMul(l, gfMul(at^xs[j], gfInv(xs[i]^xs[j])))
			}
		}
		for b := range out {
			out[b] ^= gfMul(l, ys[i][b])
		}
	}
	return out
}
