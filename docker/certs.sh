#!/bin/sh
# Makes all certificates and keys of the demo once, and gives each party what it needs and no more.
set -eu
uid=10001 # the user of the image

mh-pfedhn certs /authority --host server --site site-a --site site-b --site site-c --site site-d

mkdir -p /parties/server/sites
cp /authority/ca.crt /authority/server.pem /authority/server.key /parties/server/
cp /authority/sites/*.pub /parties/server/sites/
for site in site-a site-b site-c site-d; do
    cp /authority/ca.crt "/parties/$site/ca.crt"
    cp "/authority/sites/$site" "/parties/$site/key"
done
chown -R "$uid" /parties
