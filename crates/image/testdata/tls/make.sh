#!/bin/sh
# Makes the certificates of the TLS tests. The keys protect nothing: they are published here.
set -eu
cd "$(dirname "$0")"
days=36500
key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }
key ca.key
openssl req -x509 -new -key ca.key -subj "/CN=Crisp test authority" -days $days -out ca.crt \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign"
leaf() {
    key "$1.key"
    openssl req -new -key "$1.key" -subj "/CN=Crisp test $1" -out "$1.csr"
    printf '%s\n' "$2" >"$1.ext"
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days $days -extfile "$1.ext" -out "$1.crt"
    rm "$1.csr" "$1.ext"
}
leaf server "subjectAltName=IP:127.0.0.1,DNS:localhost
extendedKeyUsage=serverAuth"
leaf client "extendedKeyUsage=clientAuth"
rm ca.key ca.srl
