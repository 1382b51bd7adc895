package logtext

// card measures the payment card number at i; 0 if there is none. The digits
// may be in groups, separated by single spaces or dashes.
func card(s string, i int) int {
	var num [19]byte
	n, end := 0, i
	separator := byte(0)
	for j := i; j < len(s); j++ {
		c := s[j]
		if isDigit(c) {
			if n == len(num) {
				return 0 // longer than any card number
			}
			num[n] = c - '0'
			n++
			end = j + 1
			continue
		}
		if (c != ' ' && c != '-') || separator != 0 && c != separator || j+1 >= len(s) || !isDigit(s[j+1]) || j-i < 4 {
			break
		}
		if separator == 0 && j-i != 4 {
			break // groups begin with four digits
		}
		separator = c
	}
	if end < len(s) && (isWord(s[end]) || s[end] == '.' && end+1 < len(s) && isDigit(s[end+1])) {
		return 0
	}
	if !cardBrand(num[:n]) || !luhn(num[:n]) {
		return 0
	}
	return end
}

// cardBrand tells whether a brand has numbers of this length and beginning.
func cardBrand(num []byte) bool {
	n := len(num)
	if n < 13 {
		return false
	}
	two := int(num[0])*10 + int(num[1])
	four := two*100 + int(num[2])*10 + int(num[3])
	switch {
	case num[0] == 4: // Visa
		return n == 13 || n == 16 || n == 19
	case two >= 51 && two <= 55, four >= 2221 && four <= 2720: // Mastercard
		return n == 16
	case two == 34, two == 37: // American Express
		return n == 15
	case two == 36, two == 38, four >= 3000 && four <= 3059: // Diners Club
		return n == 14
	case four >= 3528 && four <= 3589: // JCB
		return n == 16
	case four == 6011, two == 65, four >= 6440 && four <= 6499: // Discover
		return n == 16
	case two == 62: // UnionPay
		return n >= 16
	}
	return false
}

// luhn checks the last digit.
func luhn(num []byte) bool {
	sum := 0
	for i, d := range num {
		v := int(d)
		if (len(num)-i)%2 == 0 {
			if v *= 2; v > 9 {
				v -= 9
			}
		}
		sum += v
	}
	return sum%10 == 0
}
